"""Timing pieces of work side by side: wall and CPU seconds of named pieces, repetition by repetition.

CPU seconds are those of all threads of this process. A piece may be timed in several portions of a repetition: they add
up, so that a large piece of work can be measured block by block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Lap(NamedTuple):
    """Wall and CPU seconds of one piece in one repetition."""

    wall: float
    cpu: float


class Spread(NamedTuple):
    """The median repetition, and the extremes."""

    median: float
    low: float
    high: float


@dataclass
class Stopwatch:
    """Times what it is given. On a GPU, it waits for the device before and after."""

    device: str
    laps: list[dict[str, Lap]] = field(default_factory=list)
    """By repetition, then by piece."""

    def begin(self) -> None:
        """Begin a repetition."""
        self.laps.append({})

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Do a piece of work, and add its time to that piece of the present repetition."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self._wait()
        lap = Lap(time.perf_counter() - wall, time.process_time() - cpu)
        before = self.laps[-1].get(name, Lap(0.0, 0.0))
        self.laps[-1][name] = Lap(before.wall + lap.wall, before.cpu + lap.cpu)
        return result

    def subtract(self, name: str, part: str) -> None:
        """Take a piece that was also timed alone out of another of the present repetition."""
        laps = self.laps[-1]
        if name not in laps or part not in laps:
            return
        whole, inside = laps[name], laps[part]
        self.laps[-1][name] = Lap(max(0.0, whole.wall - inside.wall), max(0.0, whole.cpu - inside.cpu))

    def names(self) -> tuple[str, ...]:
        """Every piece, in the order in which it was first timed."""
        return tuple(dict.fromkeys(name for laps in self.laps for name in laps))

    def wall(self, name: str) -> Spread:
        """Wall seconds of a repetition."""
        return _spread([laps[name].wall for laps in self.laps if name in laps])

    def cpu(self, name: str) -> float:
        """CPU seconds of the median repetition."""
        return statistics.median(laps[name].cpu for laps in self.laps if name in laps)

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


def _spread(seconds: list[float]) -> Spread:
    return Spread(statistics.median(seconds), min(seconds), max(seconds))
