"""Where the time of an extraction goes: how many blocks are in each stage on average, and how often a device waits."""

import time

from unic_pipe.pipeline.extraction.executors import Executor, Threads
from unic_pipe.pipeline.extraction.forward import STAGES
from unic_pipe.pipeline.process.gpu_use import gpu_use

WAITING = 0.05
"""Fraction of the time that an accelerator may wait without a remark."""

_WORDS = {"views": "rendering", "queue": "ready for the device", "device": "on the device", "write": "writing"}
_MORE = {
    "views": "reading, decoding and rendering views limits it: more CPU cores per GPU, or faster storage of the samples",
    "write": "encoding and writing features limits it: more CPU cores per GPU, a faster disk, or cache.codec: float16",
    "none": "too few blocks are in flight: Dask workers need three threads each (dask worker --nthreads 3)",
}


class Waits:
    """Adds up the seconds that blocks report."""

    def __init__(self, device: str, executor: Executor) -> None:
        self._accelerated, self._executor = device != "cpu", executor
        # Workers may be on other machines, of whose GPUs nothing is known here.
        self._here = device if isinstance(executor, Threads) else "elsewhere"
        self._started = time.monotonic()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def add(self, seconds: dict[str, float]) -> None:
        """A finished block's seconds per stage."""
        for stage, value in seconds.items():
            self._seconds[stage] += value

    def blocks(self) -> dict[str, float]:
        """Blocks in each stage on average: seconds that all blocks spent in it, over the time since the start."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {stage: value / elapsed for stage, value in self._seconds.items()}

    def waiting(self) -> float:
        """Fraction of the time in which a device had nothing to do, from 0 to 1."""
        return max(0.0, 1.0 - self.blocks()["device"] / max(1, self._executor.devices))

    def note(self) -> str:
        """A short remark for the progress line."""
        blocks = self.blocks()
        if self._accelerated:
            depths = ", ".join(f"{blocks[stage]:.1f} {_WORDS[stage]}" for stage in STAGES)
            use = gpu_use(self._here)
            busy = "" if use is None else f" · GPU {use:.0%}"
            return f"blocks: {depths} · device waits {self.waiting():.0%}{busy}"
        total = sum(blocks.values())
        if not total:
            return ""
        shares = {"views": "views", "forward": "device", "write": "write"}
        return ", ".join(f"{word} {blocks[stage] / total:.0%}" for word, stage in shares.items())

    def remark(self) -> str | None:
        """One line that names the bottleneck, if an accelerator waited more than `WAITING` of the time.

        On a CPU there is no such wait: it does everything itself.
        """
        if not self._accelerated or not sum(self._seconds.values()) or self.waiting() <= WAITING:
            return None
        blocks = self.blocks()
        busiest = max(("views", "write"), key=blocks.__getitem__)
        # Each of the blocks in flight is somewhere; with nothing before or behind the device there were too few.
        reason = busiest if sum(blocks.values()) > 1.5 * self._executor.devices else "none"
        return f"The device waited {self.waiting():.0%} of the time: {_MORE[reason]}."
