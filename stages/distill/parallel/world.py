"""The processes that train together: what they tell each other, and what is said when one of them fails.

Tensors on a CPU travel by gloo, those on GPUs by NCCL. Every method is called by all processes, in the same order. A
`World` of one process talks to nobody, and leaves every bit as it is.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from unic_pipe.pipeline.loggers import Maker
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.distill.parallel.members import Elsewhere, Member, gpu_of

CAUSE = "cause"
_POLL_S = 0.05
_STDIN = 0
_LOST = re.compile(r"gloo|nccl|socket|store|connection|broken pipe|timed? ?out|reset by peer", re.IGNORECASE)
"""Words of the errors that collectives raise when another process is gone."""


class World:
    """This process among those that train together."""

    def __init__(self, member: Member | None = None, store: Any = None) -> None:
        """`store`: a `torch.distributed.Store` through which members meet."""
        self.rank, self.size = (member.rank, member.size) if member else (0, 1)
        self.local_rank, self.local_size = (member.local_rank, member.local_size) if member else (0, 1)
        self._store, self._turns = store, 0
        self._asked: tuple[dist.Work, Tensor] | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process, of those that `wanted` (`auto`, `cpu`, `cuda`, `mps`) means.

        Raises:
            UserError: one device for several processes.
        """
        if self.size == 1 or wanted == "cpu":
            return wanted
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if wanted == "auto" and not gpus:
            return "cpu"
        if wanted not in ("auto", "cuda"):
            raise UserError(
                f"--device {wanted} is one device, and {self.size} processes need one each.", "Leave it out."
            )
        gpu = gpu_of(self.local_rank, self.local_size, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if gpu is None:
            raise UserError(
                f"{self.local_size} processes on this machine need a GPU each, and it has {gpus}.",
                f"Use {gpus} processes, or --device cpu.",
            )
        torch.cuda.set_device(gpu)
        return f"cuda:{gpu}"

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does what is in the block, then all others do: it makes what they find made.

        Raises:
            Elsewhere: the first process failed there.
        """
        turn, self._turns = f"turn-{self._turns}", self._turns + 1
        while self.rank and not self._store.check([turn]):
            if self._store.check([CAUSE]):
                raise Elsewhere
            time.sleep(_POLL_S)
        yield
        if self.size > 1 and self.first:
            self._store.set(turn, "done")

    def sum(self, x: Tensor) -> Tensor:
        """Sum over all processes, in a new tensor."""
        if self.size == 1:
            return x
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def highest(self, number: int) -> int:
        """The highest of all processes' numbers."""
        if self.size == 1:
            return number
        x = torch.tensor(number)
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return int(x)

    def stopping(self, stop: Stop) -> bool:
        """Whether any process was asked to stop; then all of them are."""
        number = self.highest(stop.signal or 0)
        if number:
            stop.request(number)
        return number > 0

    def between_steps(self, stop: Stop, due: bool) -> tuple[bool, bool]:
        """Whether all stop now, and whether a checkpoint is due: what they said before the step before this one.

        Asked ahead, so that no step waits for the answer.
        """
        if self.size == 1:
            return stop.requested, due
        answer = torch.zeros(2, dtype=torch.int64)
        if self._asked is not None:
            work, answer = self._asked
            work.wait()
        asking = torch.tensor([stop.signal or 0, int(due)])
        self._asked = dist.all_reduce(asking, dist.ReduceOp.MAX, async_op=True), asking
        if answer[0]:
            stop.request(int(answer[0]))
        return bool(answer[0]), bool(answer[1])

    def blame(self, error: Exception) -> Exception:
        """What to raise for an error: the first process that fails speaks, others end without a word."""
        if self.size == 1 or isinstance(error, Elsewhere):
            return error
        speaks = True
        # Where the store is gone, so is the process that kept it.
        with suppress(RuntimeError):
            speaks = self._store.add(CAUSE, 1) == 1
        if not speaks:
            # All may have seen the same, for instance in the configuration.
            return Elsewhere(getattr(error, "exit_code", 1))
        if isinstance(error, StageError | UserError) or not isinstance(error, RuntimeError):
            return error
        if not _LOST.search(str(error)):
            return error
        return StageError(
            f"One of the {self.size} processes of this training ended or does not answer any more (seen by process "
            f"{self.rank}). Finished checkpoints are kept.",
            "Run the same command again; it goes on from the newest, on any number of processes that divides streams.",
        )


@dataclass(frozen=True)
class Context:
    """What goes along from the command to the training step."""

    reporter: Reporter
    """Shows progress; silent on all processes but the first."""
    stop: Stop
    """Polled between steps; a stop writes checkpoints first."""
    world: World = field(default_factory=World)
    """The processes that train together, each on its share of every batch; the first one writes."""
    loggers: Mapping[str, Maker] = field(default_factory=dict)
    """Other programs that get the metrics, from the first process."""


@contextmanager
def joined(member: Member | None, stop: Stop, timeout_minutes: float) -> Iterator[World]:
    """Meet the other processes; without any, a world of one.

    Raises:
        StageError: another process ended, or did not come or answer within the time.
        Elsewhere: another process failed, and says why.
    """
    if member is None:
        yield World()
        return
    timeout = timedelta(minutes=timeout_minutes)
    if member.store is not None:
        _listen(stop)
        store: Store = FileStore(str(member.store), member.size)
    else:
        store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
    world = World(member, PrefixStore("unic-pipe", store))
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=member.rank, world_size=member.size, timeout=timeout
        )
        yield world
        world.highest(0)  # no process leaves while another still talks to it
    except Exception as error:
        found = world.blame(error)
        if found is error:
            raise
        raise found from error
    dist.destroy_process_group()


def _listen(stop: Stop) -> None:
    """Ask for a stop when the process that started this one says so, or is gone."""

    def listen() -> None:
        said = os.read(_STDIN, 1)
        if said:
            stop.request(said[0])
        else:
            stop.request()

    threading.Thread(target=listen, name="stop", daemon=True).start()
