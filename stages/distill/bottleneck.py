"""Where the loader's time goes, and what to say when the device waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

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
