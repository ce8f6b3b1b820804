"""Who runs the blocks of a command: threads of this process, or workers of a Dask cluster (`dask`).

All run the same function on the same small tasks, so the bytes do not depend on which one ran. An executor serves every
pass of a command and is closed at its end; nothing is started before there is something to run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import ParamSpec, Self, TypeVar

from unic_pipe.pipeline.extraction.blocks import BlockResult, BlockTask, ExtractJob, pick_device, run_block
from unic_pipe.pipeline.process.crew import blocks_in_flight
from unic_pipe.pipeline.process.stopping import Stop, Stopped
from unic_pipe.pipeline.process.threads import usable_cores

P = ParamSpec("P")
T = TypeVar("T")


class Executor(ABC):
    """Runs block tasks. A context manager: leaving it closes what was started."""

    waits_in_line = False
    """Whether blocks may wait for workers that do other people's work, or are not there yet."""

    @abstractmethod
    def run(self, job: ExtractJob, tasks: Iterable[BlockTask], stop: Stop) -> Iterator[BlockResult]:
        """Run tasks and yield results as they finish. After a stop request no other begins; blocks in flight end at
        their next batch here, and are finished where they run elsewhere.
        Raises StageError: what `run_block` raises; a cluster's failures, in plain words. Finished blocks are kept."""

    @abstractmethod
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function where blocks run: on the same hardware, with the same encoders loaded."""

    def device(self, wanted: str) -> str:
        """The device that `wanted` (perhaps `auto`) means where blocks run. Raises UserError."""
        return self.call(pick_device, wanted)

    @property
    def devices(self) -> int:
        """How many processes run blocks, each with one device."""
        return 1

    def close(self) -> None:  # noqa: B027 - threads have nothing to close
        """Stop what was started; the executor starts again when it is used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


class Threads(Executor):
    """Threads of this process."""

    def run(self, job: ExtractJob, tasks: Iterable[BlockTask], stop: Stop) -> Iterator[BlockResult]:
        """A few blocks at a time, whose pieces share the cores: memory is bounded, and a stop is quick."""
        cores, left = usable_cores(), iter(tasks)
        width = blocks_in_flight(job.device, cores, job.encoders[0].need.definition.block_rows, job.batch)
        with ThreadPoolExecutor(width, thread_name_prefix="block") as pool:
            running = {pool.submit(run_block, job, task, cores, stop) for task in islice(left, width)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        try:
                            yield future.result()
                        except Stopped:
                            continue
                        if not stop.requested:
                            running |= {pool.submit(run_block, job, task, cores, stop) for task in islice(left, 1)}
            finally:
                for future in running:
                    future.cancel()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it here."""
        return function(*args, **kwargs)
