"""The threads of a process that do the pieces of blocks.

A block is rendered in slices of rows, encoded in batches and committed in units. Those pieces are what runs in parallel,
on as many threads as the process has cores for, so that the last block of a run is shared by all of them too. The thread
of a block only waits for its pieces; how many blocks are in flight bounds memory (`blocks_in_flight`).

On an accelerator one loop does the forward passes of all blocks (`extraction.device_loop`), while others of those in
flight are rendered before it and written behind it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ParamSpec, TypeVar

from unic_pipe.pipeline.process.threads import torch_threads

P = ParamSpec("P")
T = TypeVar("T")

ON_ACCELERATOR = 3
"""Blocks in flight per accelerator: one is rendered, one is on the device, one is written."""


def blocks_in_flight(device: str, cores: int, block_rows: int, batch: int) -> int:
    """Blocks that a process works on at once: few, because each holds its views and features in memory.

    On a CPU enough that every core has a batch to encode, and two more, of which one is rendered and one is written.
    """
    if device != "cpu":
        return ON_ACCELERATOR
    batches = -(-block_rows // batch)
    return 2 + -(-cores // batches)


@dataclass(frozen=True)
class Crew:
    """Threads of this process: for views and, on a CPU, forward passes; and for writing."""

    hands: Executor
    writers: Executor
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

            # Not put back: the number belongs to the thread, but parts of torch share it, and the others are at work.
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


@contextmanager
def crew_of_one(threads: int) -> Iterator[Crew]:
    """A crew without threads: the caller's does one piece after the other, so that each can be timed alone."""
    here = _Here()
    with torch_threads(threads):
        yield Crew(here, here, 1, threads)


class _Here(Executor):
    """Does at once what is submitted."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(function(*args, **kwargs))
        return future


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
