"""Timing pieces of work side by side: wall and CPU seconds of named pieces, repetition by repetition.

CPU seconds are those of all threads of this process. A piece may be timed in several portions of a repetition: they add
up, so that a large piece of work can be measured block by block.
"""

import statistics
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Lap(NamedTuple):
    """Wall and CPU seconds of one piece in one repetition."""

    wall: float = 0.0
    cpu: float = 0.0


class Spread(NamedTuple):
    """The median repetition, and the extremes."""

    median: float
    low: float
    high: float


@dataclass
class Stopwatch:
    """Times pieces of work, in one thread."""

    names: Collection[str] | None = None
    """What is timed; None: everything."""
    device: str = "cpu"
    """A GPU is waited for before and after each piece, so that its work is that piece's."""
    laps: list[dict[str, Lap]] = field(default_factory=lambda: [{}])
    """By repetition, then by piece."""

    def times(self, name: str) -> bool:
        """Whether a piece is timed."""
        return self.names is None or name in self.names

    def begin(self) -> None:
        """Begin another repetition, if the present one has timed anything."""
        if self.laps[-1]:
            self.laps.append({})

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of a piece in the present repetition."""
        if not self.times(name):
            yield
            return
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._wait()
            self.add(name, Lap(time.perf_counter() - wall, time.process_time() - cpu))

    def add(self, name: str, lap: Lap) -> None:
        """Add seconds to those of a piece in the present repetition."""
        before = self.laps[-1].get(name, Lap())
        self.laps[-1][name] = Lap(before.wall + lap.wall, before.cpu + lap.cpu)

    def subtract(self, name: str, part: str) -> None:
        """Take a piece that was also timed alone out of another of the present repetition."""
        laps = self.laps[-1]
        if name not in laps or part not in laps:
            return
        whole, inside = laps[name], laps[part]
        self.laps[-1][name] = Lap(max(0.0, whole.wall - inside.wall), max(0.0, whole.cpu - inside.cpu))

    def pieces(self) -> tuple[str, ...]:
        """Every piece, in the order in which it was first timed."""
        return tuple(dict.fromkeys(name for laps in self.laps for name in laps))

    def wall(self, name: str) -> Spread:
        """Wall seconds of a repetition."""
        seconds = [laps[name].wall for laps in self.laps if name in laps]
        return Spread(statistics.median(seconds), min(seconds), max(seconds))

    def cpu(self, name: str) -> float:
        """CPU seconds of the median repetition."""
        return statistics.median(laps[name].cpu for laps in self.laps if name in laps)

    def total(self, name: str) -> Lap:
        """Of a piece, in all repetitions."""
        mine = [laps[name] for laps in self.laps if name in laps]
        return Lap(sum(lap.wall for lap in mine), sum(lap.cpu for lap in mine))

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of each piece in the present repetition."""
        return {name: lap.wall for name, lap in self.laps[-1].items()}

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


UNTIMED = Stopwatch(names=())
"""Times nothing, in any number of threads."""
