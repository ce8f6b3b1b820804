"""Whether this process is one of several that train together, and which one. Free of torch, so that it is quick to ask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.config import StudentConfig
from schemas.errors import StageError, UserError

STORE = "UNIC_PIPE_STORE"
"""Environment variable by which `--devices` tells its processes the file through which they meet."""


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
    """Every process takes whole streams of every batch (see `pipeline.order`).

    Raises:
        UserError: the streams of a student cannot be shared evenly by `size` processes; with the numbers that work.
    """
    for name, config in students.items():
        if config.streams % size:
            fitting = [str(n) for n in range(1, config.streams + 1) if config.streams % n == 0]
            raise UserError(
                f"Student {name}: its {config.streams} sample streams cannot be shared by {size} processes evenly.",
                f"Use {' or '.join(fitting)} processes. Another students.{name}.streams makes another student.",
            )
