"""The threads of a process that do the pieces of blocks, and where the time of a block goes.

A block is rendered in slices of rows, encoded in batches and committed in units. Those pieces are what runs in parallel,
on as many threads as the process has cores for, so that the last block of a run is shared by all of them too. The thread
of a block only waits for its pieces; how many blocks are in flight bounds memory (`blocks_in_flight`).

On an accelerator the forward passes run in the block's own thread, one block at a time, while the other blocks in
flight are rendered before it and written behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STAGES = ("render", "queue", "device", "write")
"""Where a block can be: read, decoded and rendered; waiting for an accelerator; encoded; waiting to be written."""

ON_ACCELERATOR = 3
"""Blocks in flight per accelerator: one is rendered, one is on the device, one is written."""


def blocks_in_flight(device: str, cores: int, block_rows: int, batch: int) -> int:
    """Blocks that a process works on at once: few, because each holds its views and features in memory.

    On a CPU enough that every core has a batch to encode, and one more that is rendered or written.
    """
    if device != "cpu":
        return ON_ACCELERATOR
    batches = -(-block_rows // batch)
    return 1 + -(-cores // batches)


@dataclass(frozen=True)
class Crew:
    """Threads of this process: for views and, on a CPU, forward passes; and for writing."""

    hands: ThreadPoolExecutor
    writers: ThreadPoolExecutor
    width: int
    threads: int

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do a piece, with the recorded number of torch threads (R9)."""
        return self.hands.submit(self._with_threads(function), *args, **kwargs)

    def start_writing(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Write something, without queueing behind the views of later blocks where a device would wait for that."""
        return self.writers.submit(self._with_threads(function), *args, **kwargs)

    def _with_threads(self, function: Callable[P, T]) -> Callable[P, T]:
        def piece(*args: P.args, **kwargs: P.kwargs) -> T:
            import torch

            # The number belongs to the thread, and other work of this process may have changed it.
            torch.set_num_threads(self.threads)
            return function(*args, **kwargs)

        return piece


@cache
def crew_of(cores: int, threads: int, accelerated: bool) -> Crew:
    """The crew of this process; made once. `threads` is torch's number inside one piece, so fewer pieces run at once."""
    width = max(1, cores // threads)
    hands = ThreadPoolExecutor(width, thread_name_prefix="piece")
    writers = ThreadPoolExecutor(width, thread_name_prefix="write") if accelerated else hands
    return Crew(hands, writers, width, threads)


def results(futures: list[Future[T]]) -> list[T]:
    """Results in order; after a failure those that have not started never start, and none is still running."""
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()
        raise


@dataclass
class Stopwatch:
    """Seconds that a block spent in each of `STAGES`."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - started
