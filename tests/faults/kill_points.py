"""Commits units and folds their records, and dies at a chosen point: before or after a write, fsync, link, rename,
removal or new folder, or in the middle of a write. A script: imports once, and forks itself for every request.

Reads lines `FOLDER POINT`; the forked process counts points and exits hard (status 9) at that one. With point -1 it
first checks that nothing which can be read is wrong, and then runs to its end. Answers with `STATUS POINTS`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import write_losses
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.features import FeatureManifest

KILLED = 9
BLOCKS, ROWS = 1, 4
DIGESTS = [hashlib.sha256(str(block).encode()).hexdigest() for block in range(BLOCKS)]


class Points:
    """Counts the points that a process passes, and ends it at one of them."""

    def __init__(self, last: int) -> None:
        self.passed, self.last = 0, last

    def __call__(self) -> None:
        if self.passed == self.last:
            os._exit(KILLED)
        self.passed += 1

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self()
            result = function(*arguments, **named)
            self()
            return result

        return wrapped

    def install(self) -> None:
        """Watch everything by which the store changes files."""
        for name in ("fsync", "link", "replace", "unlink", "mkdir"):
            setattr(os, name, self.around(getattr(os, name)))
        whole = LocalStore._write_temporary

        def write(store: LocalStore, data: bytes) -> Path:
            self()
            if self.passed == self.last:
                (store.root / ".tmp").mkdir(parents=True, exist_ok=True)
                (store.root / ".tmp" / f"{os.uname().nodename}@{os.getpid()}-half").write_bytes(data[: len(data) // 2])
            self()
            return whole(store, data)

        LocalStore._write_temporary = write  # type: ignore[method-assign,assignment]


def manifest() -> FeatureManifest:
    return feature_manifest(feature_definition(encoder_definition(3, 2, (2, 2)), ROWS, "int8"))


def values(token: str, block: int) -> np.ndarray:
    shape = (ROWS, 3) if token == "cls" else (ROWS, 4, 2)
    return np.random.default_rng([token == "cls", block]).normal(size=shape).astype(np.float32)


def extract(path: Path) -> None:
    """Commit what is missing, fold, and derive what is derived, as the extract stage does."""
    store = LocalStore(path)
    folder = FeatureFolder(store)
    folder.create(manifest())
    store.sweep()
    for token in ("cls", "patch"):
        prepare_view(folder, 0, token, BLOCKS * ROWS)
        for block in np.flatnonzero(~folder.covered(0, token, DIGESTS)).tolist():
            commit_unit(
                folder, 0, token, block, values(token, block), np.ones(ROWS, bool), rows_digest=DIGESTS[block], batch=8
            )
        folder.fold(0, token)
    write_ledger(folder)
    write_losses(folder)


def check(path: Path) -> None:
    """What a kill left: no damage, and every block reads as what was committed, or not at all."""
    if not (path / "manifest.json").exists():
        return
    problems, _ = verify_folder(path, read_only=True)
    assert problems == [], problems
    cache = FeatureCache.open(path)
    for token in ("cls", "patch"):
        for block in range(BLOCKS):
            try:
                got = cache.read_block(0, token, block, rows_digest=DIGESTS[block])
            except UnicPipeError:
                continue
            assert np.allclose(got.values, values(token, block), atol=0.05)


def serve(path: Path, point: int) -> tuple[int, int]:
    """Fork, run, and wait: exit status, and points passed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            points = Points(point)
            if point < 0:
                check(path)
            points.install()
            extract(path)
            os.write(write, str(points.passed).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(child, 0)
    passed = os.read(read, 20)
    os.close(read)
    return os.waitstatus_to_exitcode(status), int(passed or 0)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        folder, number = line.rsplit(" ", 1)
        print(*serve(Path(folder), int(number)), flush=True)
