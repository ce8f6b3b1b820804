"""Running block tasks: threads of this process, or worker processes of a Dask cluster on this machine.

Both call the same function on the same small tasks, so the bytes do not depend on which one ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from pipeline.engine import BlockResult, BlockTask, ExtractJob, run_block
from pipeline.stopping import Stop
from schemas.errors import StageError, UnicPipeError


def run_blocks(job: ExtractJob, tasks: Iterable[BlockTask], workers: int, stop: Stop) -> Iterator[BlockResult]:
    """Run tasks and yield results as they finish; after a stop request, only what is in flight still finishes.

    `workers` 0 uses threads of this process; otherwise that many local worker processes.
    """
    if workers:
        yield from _in_processes(job, tasks, workers, stop)
    else:
        yield from _in_threads(job, tasks, stop)


def _in_threads(job: ExtractJob, tasks: Iterable[BlockTask], stop: Stop) -> Iterator[BlockResult]:
    cores = usable_cores()
    with ThreadPoolExecutor(cores, thread_name_prefix="block") as pool:
        yield from _bounded(lambda task: pool.submit(run_block, job, task), iter(tasks), cores, stop)


def _bounded(
    submit: Callable[[BlockTask], Future[BlockResult]], tasks: Iterator[BlockTask], width: int, stop: Stop
) -> Iterator[BlockResult]:
    """Keep at most `width` tasks in flight, so that memory is bounded and a stop is quick."""
    running = {submit(task) for task in islice(tasks, width)}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                if not stop.requested:
                    running |= {submit(task) for task in islice(tasks, 1)}
    finally:
        for future in running:
            future.cancel()


def _in_processes(job: ExtractJob, tasks: Iterable[BlockTask], workers: int, stop: Stop) -> Iterator[BlockResult]:
    import dask
    from distributed import Client, LocalCluster, as_completed

    threads = max(1, usable_cores() // workers)
    # The dashboard is off: it would listen on every interface, and need a further package.
    with (
        dask.config.set({"distributed.worker.daemon": True, "distributed.scheduler.worker-ttl": "30 minutes"}),
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=None, silence_logs="ERROR"
        ) as cluster,
        Client(cluster) as client,
    ):
        source = iter(tasks)

        def submit(task: BlockTask) -> object:
            return client.submit(run_block, job, task, pure=False, key=f"block-{task.block}")

        running = as_completed([submit(task) for task in islice(source, 2 * workers * threads)])
        for future in running:
            try:
                result: BlockResult = future.result()
            except UnicPipeError:
                raise
            except Exception as error:
                raise StageError(
                    f"A worker failed on {future.key}: {type(error).__name__}: {error}",
                    "Finished blocks are kept; run the same command again (--workers 0 shows where it fails).",
                ) from error
            future.release()
            yield result
            if not stop.requested:
                for task in islice(source, 1):
                    running.add(submit(task))


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
