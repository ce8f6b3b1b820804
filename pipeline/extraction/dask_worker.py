"""What runs on a Dask worker: a look at where it is, then the block.

Workers on other machines need the same packages and the same paths; a worker that lacks one says so, with its name.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from unic_pipe.pipeline.extraction.blocks import BlockResult, BlockTask, ExtractJob, run_block
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.schemas.errors import StageError, UnicPipeError

T = TypeVar("T")

PACKAGES = ("unic-pipe", "torch", "torchvision", "timm", "numpy", "pillow", "zarr", "numcodecs", "pcodec")
"""Packages whose version may change the bytes of a feature."""


@dataclass(frozen=True)
class Expected:
    """What the command that gives out the blocks expects of a worker."""

    versions: tuple[tuple[str, str], ...] = ()
    """Packages and versions that it must have; none for processes of the same machine."""
    cores: int | None = None
    """Cores that a worker may use; None: as many as it has threads, or its GPU's share of the machine's."""


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Versions of `PACKAGES` here, without build labels such as `+cu128`."""
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package).partition("+")[0]))
        except PackageNotFoundError:
            found.append((package, "none"))
    return tuple(found)


def run_here(expected: Expected, job: ExtractJob, task: BlockTask) -> BlockResult:
    """`run_block` on this worker.
    Raises StageError: what `run_block` raises, or this worker has other packages, or does not see a folder."""
    with _named(expected):
        _check_versions(expected)
        _check_folders(job)
        return run_block(job, task, _cores(expected, job.device))


def call_here(expected: Expected, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Call a function on this worker. Raises StageError: what the function raises, or other packages."""
    with _named(expected):
        _check_versions(expected)
        return function(*args, **kwargs)


def _cores(expected: Expected, device: str) -> int:
    from distributed import get_worker

    if expected.cores is not None:
        return expected.cores
    if device == "cpu":
        return int(get_worker().state.nthreads)
    import torch

    return max(1, usable_cores() // max(1, torch.cuda.device_count()))


def _check_versions(expected: Expected) -> None:
    here = dict(versions())
    other = [f"{name} {here[name]} (here {wanted})" for name, wanted in expected.versions if here[name] != wanted]
    if other:
        raise StageError(
            f"It has {', '.join(other)}: features of two versions would be mixed.",
            "Start the workers in the environment in which this command runs.",
        )


def _check_folders(job: ExtractJob) -> None:
    """The folders that the job names must be there, and be the same ones."""
    for store in (job.dataset, *(encoder.folder for encoder in job.encoders)):
        if store.size("manifest.json") is None:
            raise StageError(
                f"It does not see {store.location}.",
                "Workers need the working folder under the same path: put it on a file system that all machines share.",
            )
    for encoder in job.encoders:
        path = encoder.encoder.weights_path
        if path is not None and not path.is_file():
            raise StageError(
                f"It does not see the weights {path}.",
                "Workers need weights_dir under the same path, on a shared disk.",
            )


@contextmanager
def _named(expected: Expected) -> Iterator[None]:
    """Errors of a worker that may be on another machine begin with its name."""
    try:
        yield
    except UnicPipeError as error:
        if not expected.versions:
            raise
        from distributed import get_worker

        raise type(error)(
            f"Worker {get_worker().address} on {socket.gethostname()}: {error.message}", error.hint
        ) from error
