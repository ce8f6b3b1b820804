"""Running block tasks: threads of this process, or worker processes of a Dask cluster on this machine.

Both call the same function on the same small tasks, so the bytes do not depend on which one ran.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from pipeline.engine import BlockResult, BlockTask, ExtractJob, run_block
from pipeline.stopping import SIGNALS, Stop
from schemas.errors import StageError, UnicPipeError

if TYPE_CHECKING:
    from distributed import Client


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
    from distributed import Client, LocalCluster

    threads = max(1, usable_cores() // workers)
    # The dashboard is off: it would listen on every interface, and need a further package.
    with dask.config.set({"distributed.worker.daemon": True, "distributed.scheduler.worker-ttl": "30 minutes"}):
        with _deaf_children():
            local = LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs="ERROR",
            )
        with local as cluster, Client(cluster) as client:
            yield from _through(client, job, tasks, 2 * workers * threads, stop)


def _through(
    client: Client, job: ExtractJob, tasks: Iterable[BlockTask], width: int, stop: Stop
) -> Iterator[BlockResult]:
    """Keep `width` tasks at the workers of a cluster, and yield results as they come."""
    from distributed import as_completed

    source = iter(tasks)

    def submit(task: BlockTask) -> object:
        return client.submit(run_block, job, task, pure=False, key=f"block-{task.block}")

    # A signal may have come while the cluster started.
    running = as_completed([submit(task) for task in islice(source, 0 if stop.requested else width)])
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


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Threads that start inside the block, and all processes that they ever start, do not hear `SIGNALS`.

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to every process of a command: workers that died of it would lose
    what is in flight. A signal that this process receives meanwhile is delivered at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Starting this helper unblocks signals in the thread that does it, so it must not start later.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
