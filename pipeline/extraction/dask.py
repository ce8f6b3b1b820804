"""Blocks on a Dask cluster: worker processes of this machine, or an existing scheduler's workers anywhere.

A cluster keeps no state that matters: what is finished has a record, so a lost worker costs its blocks in flight, and a
lost scheduler is continued by the same command.
"""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, ParamSpec, TypeVar

import dask
from distributed import Client, LocalCluster, Nanny
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from distributed.system import MEMORY_LIMIT

from unic_pipe.pipeline.extraction.blocks import BlockResult, BlockTask, ExtractJob
from unic_pipe.pipeline.extraction.dask_worker import Expected, call_here, run_here, versions
from unic_pipe.pipeline.extraction.executors import Executor
from unic_pipe.pipeline.process.crew import blocks_in_flight
from unic_pipe.pipeline.process.stopping import SIGNALS, Stop
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_S = 20.0
"""A scheduler that does not answer for so long is not there."""
_LOOK_S = 1.0
_KEPT = "Finished blocks are kept: run the same command again, and it goes on."


class DaskExecutor(Executor):
    """What runs on local processes and on other people's schedulers alike."""

    def __init__(self, stop: Stop, say: Callable[[str], None]) -> None:
        self._stop, self._say = stop, say
        self._client: Client | None = None
        self._expected = Expected()
        self._told_to_wait = False

    def run(self, job: ExtractJob, tasks: Iterable[BlockTask], stop: Stop) -> Iterator[BlockResult]:
        """One block for every thread of a worker; those that killed their workers again, one by one, at the end."""
        suspects: list[BlockTask] = []
        yield from self._through(job, iter(tasks), stop, suspects, width=None)
        # Blocks that were beside a deadly one are suspected with it, so each gets another chance alone.
        alone: list[BlockTask] = []
        yield from self._through(job, iter(suspects), stop, alone, width=1)
        if alone:
            raise _deadly(job, alone)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it on one worker."""
        client = self._connected()
        while not self._look_for_workers(client):
            if self._stop.requested:
                raise StageError("Stopped while waiting for a worker.", _KEPT)
            time.sleep(_LOOK_S)
        self._vet(client)
        future = client.submit(
            call_here, self._expected, function, args, kwargs, pure=False, key=_key(function.__name__)
        )
        try:
            result: T = future.result()
            return result
        except KilledWorker as error:
            raise StageError(f"{function.__name__} killed its worker again and again.", _AFTER_DEATH) from error
        except Exception as error:
            self._explain(error, function.__name__)

    @property
    def devices(self) -> int:
        """Workers that are there now."""
        return len(self._connected().nthreads())

    def close(self) -> None:
        """Leave the cluster."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # a scheduler that is gone cannot be left politely
                client.close(timeout=2)

    def _connected(self) -> Client:
        raise NotImplementedError

    def _vet(self, client: Client) -> None:
        """Look at workers that have not been seen before. Raises StageError: one that cannot run blocks."""

    def _through(
        self, job: ExtractJob, source: Iterator[BlockTask], stop: Stop, suspects: list[BlockTask], width: int | None
    ) -> Iterator[BlockResult]:
        """Keep tasks in flight until there are none; those that killed their workers go to `suspects`."""
        running: dict[str, tuple[Any, BlockTask]] = {}
        ended: SimpleQueue[Any] = SimpleQueue()
        try:
            while not stop.requested or running:
                if not stop.requested:  # a signal may have come while the cluster started
                    self._vet(self._connected())
                    room = (width or max(1, _threads(self._connected()))) - len(running)
                    for task in islice(source, max(0, room)):
                        future = self._submit(job, task)
                        running[future.key] = future, task
                        future.add_done_callback(ended.put)
                if not running:
                    return
                future = _next(ended)
                if future is not None:
                    yield from self._result(future, running.pop(future.key)[1], suspects)
                elif not self._look_for_workers(self._connected()) and stop.requested:
                    return
        finally:
            for future, _ in running.values():
                future.cancel()

    def _submit(self, job: ExtractJob, task: BlockTask) -> Any:
        key = _key(f"block-{task.block}")
        try:
            return self._connected().submit(run_here, self._expected, job, task, pure=False, key=key)
        except Exception as error:
            self._explain(error, f"block {task.block}")

    def _result(self, future: Any, task: BlockTask, suspects: list[BlockTask]) -> Iterator[BlockResult]:
        try:
            yield future.result()
        except KilledWorker:
            suspects.append(task)
        except Exception as error:
            self._explain(error, f"block {task.block}")
        finally:
            future.release()

    def _look_for_workers(self, client: Client) -> bool:
        """Whether there are workers; says once when there are none."""
        there = _threads(client) > 0
        if not there and not self._told_to_wait:
            self._say("No Dask worker is there (yet): waiting for one. Ctrl-C ends; finished blocks are kept.")
        self._told_to_wait = not there
        return there

    def _explain(self, error: Exception, what: str) -> NoReturn:
        """Raise what a person should read."""
        if isinstance(error, UnicPipeError):
            raise error
        if isinstance(error, FutureCancelledError) or _lost(self._client):
            raise StageError("The connection to the Dask scheduler was lost.", _KEPT) from error
        missing = _missing_module(error)
        if missing:
            raise _not_installed("A Dask worker or the scheduler", missing) from error
        raise StageError(
            f"A worker failed on {what}: {type(error).__name__}: {error}",
            f"{_KEPT} Without --workers and --scheduler it shows where it fails.",
        ) from error


class Processes(DaskExecutor):
    """Worker processes on this machine; with GPUs, one for each in turn."""

    def __init__(self, workers: int, device: str, stop: Stop, say: Callable[[str], None] = lambda text: None) -> None:
        super().__init__(stop, say)
        self._workers, self._device = workers, device
        self._cluster: LocalCluster | None = None

    def close(self) -> None:
        """End the worker processes."""
        super().close()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    def _connected(self) -> Client:
        if self._client is None:
            self._cluster = self._started()
            self._client = Client(self._cluster, set_as_default=False)
        return self._client

    def _started(self) -> LocalCluster:
        from unic_pipe.pipeline.extraction.forward import pick_device

        device = pick_device(self._device)
        cores = max(1, usable_cores() // self._workers)
        self._expected = Expected(cores=cores)
        settings = {
            "distributed.worker.daemon": True,
            # A worker that computes for minutes without a word is not dead.
            "distributed.scheduler.worker-ttl": "30 minutes",
            # One heap, which keeps what a block has freed (`process.memory`); threads begin before our code runs there.
            "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        }
        try:
            # The dashboard is off: it would listen on every interface, and need a further package.
            with dask.config.set(settings), _deaf_children():
                return LocalCluster(
                    n_workers=self._workers,
                    threads_per_worker=blocks_in_flight(device, cores, 256, 64),
                    worker_class=_OneGpu if device == "cuda" else Nanny,
                    memory_limit=MEMORY_LIMIT // self._workers,
                    host="127.0.0.1",
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    silence_logs="CRITICAL",
                )
        except Exception as error:
            raise _not_started(self._workers, error) from error


class Scheduler(DaskExecutor):
    """The workers of an existing Dask scheduler: `tcp://host:8786`, or the path of a scheduler file."""

    waits_in_line = True

    def __init__(self, address: str, stop: Stop, say: Callable[[str], None] = lambda text: None) -> None:
        super().__init__(stop, say)
        self._address = address
        self._expected = Expected(versions=versions())
        self._vetted: set[str] = set()

    def _vet(self, client: Client) -> None:
        """A worker that cannot import unic-pipe dies of its first block, so it is asked before."""
        try:
            new = [address for address in client.nthreads() if address not in self._vetted]
            found = (
                client.run(find_spec, "unic_pipe.pipeline.extraction.dask_worker", workers=new, on_error="return")
                if new
                else {}
            )
        except OSError:  # lost for now: what is in flight says so, or the connection comes back
            return
        except RuntimeError as error:  # the client has given up and closed itself
            self._explain(error, "a question to the workers")
        for address, answer in found.items():
            if answer is None or isinstance(answer, ImportError):
                raise _not_installed(f"The Dask worker {address}", "unic_pipe")
            if not isinstance(answer, Exception):
                self._vetted.add(address)

    def _connected(self) -> Client:
        if self._client is None:
            there = {"scheduler_file": self._address} if Path(self._address).is_file() else {"address": self._address}
            if "address" in there and "://" not in self._address and ":" not in self._address:
                raise UserError(
                    f"--scheduler {self._address}: neither an address nor a scheduler file that exists.",
                    "For instance tcp://HOST:8786, or the file given to dask scheduler --scheduler-file FILE.",
                )
            try:
                with _quiet_logs():
                    self._client = Client(**there, timeout=CONNECT_S, set_as_default=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"No Dask scheduler answers at {self._address}.",
                    "Start one (dask scheduler) and its workers (dask worker ADDRESS), and give the address it prints.",
                ) from error
        return self._client


class _OneGpu(Nanny):  # type: ignore[misc]
    """A worker process whose first visible GPU is its own, as dask-cuda arranges it."""

    def __init__(self, *args: Any, name: Any = 0, env: dict[str, str] | None = None, **more: Any) -> None:
        import torch

        visible = visible_from(int(name), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
        super().__init__(*args, name=name, env={**(env or {}), "CUDA_VISIBLE_DEVICES": visible}, **more)


def visible_from(worker: int, visible: str | None, count: int) -> str:
    """CUDA_VISIBLE_DEVICES of a worker, counted from 0: all that are visible, beginning with its own."""
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    own = worker % len(names)
    return ",".join(names[own:] + names[:own])


_AFTER_DEATH = (
    "A worker dies when it needs more memory than there is, or when a library crashes: its log says which. "
    "Try --batch (smaller), or give the workers more memory."
)


def _not_started(workers: int, error: BaseException) -> UnicPipeError:
    """The error about worker processes that end before they can work; also in such a process itself."""
    guard = 'if __name__ == "__main__":'
    if any("bootstrapping phase" in str(each) for each in _chain(error)):
        return UserError(
            "Worker processes run the script that starts them once more, and this one would start workers of its own.",
            f"In that script, put what is to be done once below `{guard}`.",
        )
    return StageError(
        f"{'The worker process' if workers == 1 else f'Of {workers} worker processes at least one'} ended before it could work.",
        "If it said why, that is above. Otherwise it had too little memory (each loads PyTorch: give fewer --workers, or "
        f"none), or was started by a script that does its work outside `{guard}`.",
    )


def _deadly(job: ExtractJob, tasks: list[BlockTask]) -> StageError:
    """The error about blocks that kill their workers even alone."""
    names = ", ".join(str(task.block) for task in tasks[:5]) + (", ..." if len(tasks) > 5 else "")
    many = len(tasks) > 1
    # Parts are counted from 1: of as many parts as there are blocks, each is one block.
    part = f"{tasks[0].block + 1}/{max(task.block for task in tasks) + 1}"
    return StageError(
        f"Block{'s' if many else ''} {names} of {job.encoders[0].need.dataset} killed {'their' if many else 'its'} "
        "worker again and again, also alone; everything else is finished.",
        f"{_AFTER_DEATH} In one process, where it can be watched: unic-pipe extract --part {part}",
    )


def _not_installed(who: str, module: str) -> StageError:
    return StageError(
        f"{who} cannot import {module!r}: unic-pipe is not installed there.",
        f"Start scheduler and workers in the environment of this command (same Python, same packages). {_KEPT}",
    )


def _key(what: str) -> str:
    """A key that no other run on the same scheduler uses."""
    return f"{what}-{uuid.uuid4().hex}"


def _next(ended: SimpleQueue[Any]) -> Any:
    """The next future that ended, or None after a while."""
    try:
        return ended.get(timeout=_LOOK_S)
    except Empty:
        return None


def _threads(client: Client) -> int:
    """Threads of all workers; 0 too when the scheduler does not answer."""
    try:
        return sum(client.nthreads().values())
    except Exception:
        return 0


def _lost(client: Client | None) -> bool:
    return client is not None and client.status != "running"


def _missing_module(error: BaseException | None) -> str | None:
    """The module that could not be imported, if that is what an error comes from."""
    return next((each.name for each in _chain(error) if isinstance(each, ModuleNotFoundError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it comes from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Without the client's own remarks while it tries to connect."""
    import logging

    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


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
