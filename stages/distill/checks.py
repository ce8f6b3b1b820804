"""What is looked at before a training: views that render as they did (R7), enough memory; and what is said without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from unic_pipe.pipeline.process.progress import Reporter, human_bytes
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.views.probes import check_probes, read_probes
from unic_pipe.pipeline.workspace.labels import setting_of
from unic_pipe.schemas.errors import StageError
from unic_pipe.stages.distill.data.feed import Feed
from unic_pipe.stages.distill.data.rows import Source
from unic_pipe.stages.distill.training import Training


def check_memory(students: Sequence[Training], feed: Feed, device: torch.device, processes: int) -> None:
    """The shuffle window, and on a CPU the gradients, moments and averages of all students, must fit; so must the copy
    and the bytes of a checkpoint (weights, moments, averages) that is written while training goes on.

    `processes`: of this machine that need as much each.
    """
    window, state = feed.window_bytes([s.demand for s in students]), 0
    for student in students if device.type == "cpu" else ():
        kept = 3 if student.config.ema is None else 4
        copies = kept + 2 * kept + student.at_once - 1  # gradients of every micro-batch that is learned from at once
        state += copies * sum(p.numel() * p.element_size() for p in student.model.parameters())
    window, state = window * processes, state * processes
    free = psutil.virtual_memory().available
    if window + state <= free:
        return
    name = students[0].name
    what = f"The shuffle window of student {name}" if len(students) == 1 else f"Training {len(students)} students"
    parts = f" ({human_bytes(window)} of them for the shuffle window)" if state else ""
    alone = f", or train one at a time (--student {setting_of(name)})" if len(students) > 1 else ""
    raise StageError(
        f"{what} needs {human_bytes(window + state)} of memory{parts}; {human_bytes(free)} are free.",
        f"Set students.{setting_of(name)}.window_blocks or streams lower, or cache.codec: int8{alone}.",
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
        alone = f" Or train one at a time (--student {setting_of(names[0])})." if len(names) > 1 else ""
        raise StageError(
            f"Out of memory while training student {', '.join(names)}. Finished checkpoints are kept.",
            f"Set students.{setting_of(names[0])}.optimizer.batch lower, or a smaller ladder (ladder.hidden, ladder.last_hidden)."
            f"{alone}",
        ) from error


def check_views(sources: Iterable[tuple[Source, int]], reporter: Reporter) -> None:
    """Render the probe samples of every cache and of its first views again, each once.

    Raises:
        StageError: a view renders differently now.
    """
    caches = {}
    for source, views in sources:
        for teacher, cache in source.caches.items():
            for view in range(views):
                caches[cache.location, view] = (teacher, cache, source.dataset)
    for (_, view), (teacher, cache, dataset) in caches.items():
        feature, store = cache.definition, cache.folder.store
        probes = read_probes(store, view)
        keys = {probe.key for probe in probes.probes} if probes is not None else set()
        images = _images_named(dataset, keys)
        size = feature.encoder.image_size
        remark = check_probes(
            store, feature.recipe, feature.view_seed, view, size, images, deleted=dataset.deleted_keys(0)
        )
        if remark is not None:
            reporter.say(f"{teacher}: {remark}")


def _images_named(dataset: Dataset, keys: set[str]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Probe samples are the first readable ones of the dataset."""
    first, _ = dataset.block_range(0)
    wanted = keys - set(dataset.deleted_keys(0))
    rows = [first + offset for offset, key in enumerate(dataset.block_keys(0)) if key in wanted]
    decoding = dataset.manifest.decoding
    return [(dataset.key(row), decode_image(dataset.read(row), decoding)) for row in rows]
