"""The processes that train together: which one this is, and how `--devices N` starts N of them on this machine.

A process hears of a stop through a pipe, its standard input: one byte, the number of the signal. When the pipe closes
because the process that started it was killed, that is a stop too. Free of torch, so that it is quick to ask.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import StageError, UserError

STORE = "UNIC_PIPE_STORE"
"""Environment variable by which `--devices` tells its processes the file through which they meet."""
GRACE_S = 30.0
"""After one process has failed, the others have so long to notice."""
_POLL_S = 0.05

Process = subprocess.Popen[bytes]


class Elsewhere(StageError):
    """Another process of the training has failed, and says why: this one ends without a word."""

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__("Another process of this training failed.")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Elsewhere], tuple[int]]:
        return type(self), (self.exit_code,)


@dataclass(frozen=True)
class Member:
    """One of the processes that train together, on this machine and on all."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Path | None
    """Where processes that `--devices` started meet; None: torchrun tells them."""


def member(environment: Mapping[str, str] = os.environ) -> Member | None:
    """Which process of several this is, as torchrun and `--devices` say it; None: it is alone.

    Raises:
        UserError: the variables are not numbers that go together.
    """
    place = "MASTER_ADDR" in environment or STORE in environment
    if not place or "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return None
    names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
    except ValueError:
        rank, size, local_rank, local_size = -1, 0, -1, 0
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        found = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise UserError(
            f"The environment names an impossible process: {found}.",
            "Start several processes with unic-pipe distill --devices N, or with torchrun.",
        )
    store = environment.get(STORE)
    return Member(rank, size, local_rank, local_size, Path(store) if store else None)


def gpu_of(local_rank: int, local_size: int, gpus: int, visible: str | None) -> int | None:
    """Number of the GPU that a process of this machine uses, of `gpus` that it sees; None: there are too few.

    `visible`: CUDA_VISIBLE_DEVICES. Cluster managers show every process its own GPU alone, which is then number 0.
    """
    if local_size <= gpus:
        return local_rank
    return 0 if gpus == 1 and visible is not None and "," not in visible else None


def refuse_uneven(students: Mapping[str, StudentConfig], size: int) -> None:
    """Every process takes whole streams of every batch (see `pipeline.samples.order`).

    Raises:
        UserError: the streams of a student cannot be shared evenly by `size` processes, with the numbers that work; or it
            takes no shares of a batch.
    """
    for name, config in students.items():
        if size > 1 and config.loss.needs_whole_batches:
            raise UserError(
                f"Student {name} normalises its targets by whole batches (loss.standardize: batch), so one process trains it.",
                f"Use one process, or set students.{name}.loss.standardize: exact, which makes another student.",
            )
        if config.streams % size:
            fitting = [str(n) for n in range(1, config.streams + 1) if config.streams % n == 0]
            raise UserError(
                f"Student {name}: its {config.streams} sample streams cannot be shared by {size} processes evenly.",
                f"Use {' or '.join(fitting)} processes. Another students.{name}.streams makes another student.",
            )


def launch(count: int, arguments: Sequence[str], stop: Stop) -> int:
    """Run `unic-pipe ARGUMENTS` in `count` processes; their exit code.

    Raises:
        StageError: no process was left to say what happened.
    """
    with TemporaryDirectory(prefix="unic-pipe-") as folder:
        processes = [_start(rank, count, arguments, Path(folder) / "store") for rank in range(count)]
        try:
            code = _supervise(processes, stop)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if all(process.returncode < 0 for process in processes):
        raise StageError(
            f"All {count} processes of this training were killed. Finished checkpoints are kept.",
            "Run the same command again. The system's log says whether memory was short.",
        )
    return code


def _start(rank: int, count: int, arguments: Sequence[str], store: Path) -> Process:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {**os.environ, **{name: str(value) for name, value in numbers.items()}, STORE: str(store)}
    if sys.platform == "linux":
        # They talk to each other alone: not over the network, whatever the host's name means there.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return subprocess.Popen(
        # -P: a folder named `cli` where the command is typed is not ours.
        [sys.executable, "-P", "-m", "unic_pipe", *arguments],
        stdin=subprocess.PIPE,
        env=environment,
        # A terminal's Ctrl-C is for this process; it passes it on once.
        start_new_session=True,
    )


def _supervise(processes: Sequence[Process], stop: Stop) -> int:
    """Wait for all; the highest of their exit codes: what is wrong with the input (2) shows in one of them at least."""
    code, told, deadline = 0, False, float("inf")
    alive = list(processes)
    while alive:
        time.sleep(_POLL_S)
        if stop.signal is not None and not told:
            told = True
            for process in alive:
                _tell(process, stop.signal)
        for process in [p for p in alive if p.poll() is not None]:
            alive.remove(process)
            if process.returncode:
                # Killed by a signal: the others say so, and end with 1.
                code, deadline = max(code, process.returncode, 1), min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            for process in alive:
                process.kill()
    return code


def _tell(process: Process, number: int) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(bytes([number]))
        process.stdin.flush()
