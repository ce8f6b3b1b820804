"""What a training may use of the machine, and what to say when that is not enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from pipeline.progress import human_bytes
from schemas.errors import StageError
from stages.distill.feed import Feed
from stages.distill.training import Training


def check_memory(students: Sequence[Training], feed: Feed, device: torch.device, processes: int) -> None:
    """The shuffle window, and on a CPU the gradients, moments and averages of all students, must fit; so must the copy
    and the bytes of a checkpoint (weights, moments, averages) that is written while training goes on.

    `processes`: of this machine that need as much each.
    """
    window, state = feed.window_bytes(students), 0
    for student in students if device.type == "cpu" else ():
        kept = 3 if student.config.ema is None else 4
        copies = kept + 2 * kept
        state += copies * sum(p.numel() * p.element_size() for p in student.model.parameters())
    window, state = window * processes, state * processes
    free = psutil.virtual_memory().available
    if window + state <= free:
        return
    name = students[0].name
    what = f"The shuffle window of student {name}" if len(students) == 1 else f"Training {len(students)} students"
    parts = f" ({human_bytes(window)} of them for the shuffle window)" if state else ""
    alone = f", or train one at a time (--student {name})" if len(students) > 1 else ""
    raise StageError(
        f"{what} needs {human_bytes(window + state)} of memory{parts}; {human_bytes(free)} are free.",
        f"Set students.{name}.window_blocks or streams lower, or cache.codec: int8{alone}.",
    )


@contextmanager
def memory_words(names: Sequence[str]) -> Iterator[None]:
    """Say what to set when memory runs out."""
    try:
        yield
    except Exception as error:
        # The CPU's allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        alone = f" Or train one at a time (--student {names[0]})." if len(names) > 1 else ""
        raise StageError(
            f"Out of memory while training student {', '.join(names)}. Finished checkpoints are kept.",
            f"Set students.{names[0]}.optimizer.batch lower, or a smaller ladder (ladder.hidden, ladder.last_hidden)."
            f"{alone}",
        ) from error
