"""How fast steps are, how long the device waits for data and what for, and when a checkpoint is due."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeVar

import torch

from unic_pipe.pipeline.process.gpu_use import gpu_use

T = TypeVar("T")
Work = Literal["reading", "decoding", "rendering", "decompressing", "gathering"]

NAMES: dict[Work, str] = {
    "reading": "reading from the disk",
    "decoding": "decoding images",
    "rendering": "rendering views",
    "decompressing": "decompressing features",
    "gathering": "putting batches together",
}
ADVICE: dict[Work, str] = {
    "reading": "A faster or nearer disk helps, or a smaller cache (cache.codec: auto).",
    "decoding": "More CPU cores help, or smaller images.",
    "rendering": "More CPU cores help, or a lighter views.recipe.",
    "decompressing": "More CPU cores help, or cache.codec: int8.",
    "gathering": "More processes (--devices) or a smaller batch help.",
}
WAITS = 0.05
"""Fraction of the time that a device may wait without a word."""
LOOK_S = 30.0
"""So long is looked at before anything is said."""
AHEAD = 2
"""Steps that a GPU has in its queue at most. More would hide from the clock that it is busy, and hold memory."""


class Times:
    """Seconds of all threads of the loader, by what they did, and how many batches stood ready when one was taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[Work, float] = dict.fromkeys(NAMES, 0.0)
        self._ready, self._taken = 0, 0

    def add(self, work: Work, seconds: float) -> None:
        """Count time that one thread spent."""
        with self._lock:
            self.seconds[work] += seconds

    @contextmanager
    def spent(self, work: Work) -> Iterator[None]:
        """Count the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(work, time.perf_counter() - started)

    def took(self, ready: int) -> None:
        """A batch is taken when so many stand ready."""
        self._ready, self._taken = self._ready + ready, self._taken + 1

    def queue(self) -> float:
        """Mean number of batches that stood ready, since the last call."""
        mean = self._ready / max(self._taken, 1)
        self._ready = self._taken = 0
        return mean


class Bottleneck:
    """Says once what the device waits for, when it waits more than `WAITS` of the time."""

    def __init__(self, times: Times, threads: int, on_gpu: bool, say: Callable[[str], None]) -> None:
        """`threads`: of the loader's pool; batches are put together by one more."""
        self.times, self.threads, self.on_gpu, self._say = times, threads, on_gpu, say
        self._before: dict[Work, float] | None = None
        self._waited_s = self._seconds = 0.0

    def look(self, waited: float, seconds: float) -> None:
        """Count a stretch of `seconds`, a fraction of which was `waited`. The first one fills the window: not counted."""
        if self._before is None:
            self._before = dict(self.times.seconds)
            return
        self._waited_s, self._seconds = self._waited_s + waited * seconds, self._seconds + seconds
        if self._seconds < LOOK_S:
            return
        text = self.remark()
        if text is not None:
            self._say(text)
            self._seconds = float("-inf")
            return
        self._before, self._waited_s, self._seconds = dict(self.times.seconds), 0.0, 0.0

    def remark(self) -> str | None:
        """What limits now; None while the device does not wait, or waits for cores that itself keeps busy."""
        assert self._before is not None
        spent = {work: self.times.seconds[work] - before for work, before in self._before.items()}
        total = sum(spent.values())
        fraction = self._waited_s / self._seconds
        if fraction <= WAITS or total == 0:
            return None
        pooled: dict[Work, float] = {work: seconds for work, seconds in spent.items() if work != "gathering"}
        most: Work = max(pooled, key=lambda work: pooled[work])
        if spent["gathering"] > sum(pooled.values()) / self.threads:
            most = "gathering"
        if not self.on_gpu and most != "reading":
            return None
        return (
            f"The device waits for data {fraction:.0%} of the time; most of it goes to {NAMES[most]} "
            f"({spent[most] / total:.0%} of the loader's time). {ADVICE[most]}"
        )


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

    def waited(self, batches: Iterator[T]) -> Iterator[T]:
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
