"""How fast steps are, how long the device waits for data, and when a checkpoint is due."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch

from pipeline.gpu_use import gpu_use
from stages.distill.bottleneck import Bottleneck
from stages.distill.data.loader import Batch

AHEAD = 2
"""Steps that a GPU has in its queue at most. More would hide from the clock that it is busy, and hold memory."""


class Stretch(NamedTuple):
    """What was measured since the row of the metrics before: of this process, and different every time."""

    data_wait: float
    """Fraction of the time for which the device stood still because a batch was not there."""
    images_per_s: float
    """Of the global batch."""
    queue: float
    """Mean number of assembled batches when one was taken."""
    gpu_use: float | None = None
    """Fraction of the last second or so in which the GPU was busy; None where that cannot be known."""

    def known(self) -> dict[str, float]:
        """The figures by name, without what cannot be known."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def note(self) -> str:
        """What the progress line says of them."""
        use = "" if self.gpu_use is None else f" · GPU {self.gpu_use:.0%}"
        return f"waits for data {self.data_wait:.0%}{use}"


class Clock:
    """Stops the time between steps."""

    def __init__(self, checkpoint_minutes: float, on_gpu: bool, bottleneck: Bottleneck) -> None:
        self._every_s = 60 * checkpoint_minutes
        self._on_gpu, self._bottleneck = on_gpu, bottleneck
        self._row = self._checkpoint = time.monotonic()
        self._waited_s, self._images = 0.0, 0
        self._steps: deque[torch.cuda.Event] = deque()

    def waited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time until each arrives is counted, unless a GPU still had something to do."""
        while True:
            if len(self._steps) >= AHEAD:
                self._steps.popleft().synchronize()
            started = time.monotonic()
            batch = next(batches, None)
            if not self._steps or self._steps[-1].query():  # type: ignore[no-untyped-call]
                self._waited_s += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def stepped(self, images: int) -> None:
        """Count a step of so many images."""
        self._images += images
        if self._on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._steps.append(event)

    def stretch(self) -> Stretch:
        """The figures since the last call."""
        now = time.monotonic()
        seconds = max(now - self._row, 1e-9)
        use = gpu_use() if self._on_gpu else None
        found = Stretch(self._waited_s / seconds, self._images / seconds, self._bottleneck.times.queue(), use)
        self._bottleneck.look(found.data_wait, seconds)
        self._row, self._waited_s, self._images = now, 0.0, 0
        return found

    def due(self) -> bool:
        """Whether a checkpoint is due; asks at most once per period."""
        now = time.monotonic()
        if now - self._checkpoint < self._every_s:
            return False
        self._checkpoint = now
        return True
