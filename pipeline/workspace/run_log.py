"""The run log: provenance of every stage that ran, and the live figures that `status --watch` shows."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from unic_pipe.pipeline.process.progress import Reporter, Task
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.runs import RunDocument

HEARTBEAT_S = 5.0
QUIET_S = 120.0
"""A run that says it is running but has not been heard of for so long is shown as lost."""
_PACKAGES = ("unic-pipe", "torch", "torchvision", "timm", "zarr", "numcodecs", "numpy", "pillow")


class RunLog:
    """A `Reporter` that also keeps a `RunDocument` up to date; passes everything on to another reporter."""

    def __init__(self, workdir: Path, stage: str, reporter: Reporter, command: str | None = None) -> None:
        """`command`: what was typed; by default the command line."""
        self._store = LocalStore(workdir / "runs")
        self._reporter = reporter
        now = _now()
        self._document = RunDocument(
            stage=stage,
            command=command or shlex.join(["unic-pipe", *sys.argv[1:]]),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now,
            updated=now,
            state="running",
            versions={"python": platform.python_version(), **_versions()},
        )
        stamp = now.replace(":", "").replace("-", "")[:15]
        self._key = f"{stamp}-{stage}-{socket.gethostname()}-{os.getpid()}.json"
        self._written = 0.0

    def __enter__(self) -> RunLog:
        self._write()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.finish("done")
            return
        message = error.message if isinstance(error, UnicPipeError) else f"{type(error).__name__}: {error}"
        # The log must not hide why the stage failed, for instance where the disk is full.
        with suppress(UnicPipeError, OSError):
            self.finish("failed", message)

    def finish(self, state: str, message: str = "") -> None:
        """Write how it ended, unless that was written already."""
        if self._document.state == "running":
            self._update(state=state, message=message, eta_s=None)
            self._write()

    def stopped(self, stop: Stop) -> None:
        """Note that the stage ended because it was asked to."""
        if stop.requested:
            self.finish("stopped")

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self._reporter.say(text)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Task]:
        """Show progress, and write it down every few seconds."""
        with self._reporter.task(title, total, unit, done) as task:
            yield _LoggedTask(self, task, title, total, unit, done)

    def _update(self, **changes: object) -> None:
        self._document = self._document.model_copy(update={**changes, "updated": _now()})

    def _write(self) -> None:
        self._written = time.monotonic()
        self._store.put(self._key, self._document.to_bytes())

    def _beat(self, **changes: object) -> None:
        self._update(**changes)
        if time.monotonic() - self._written >= HEARTBEAT_S:
            self._write()


class _LoggedTask:
    def __init__(self, log: RunLog, task: Task, title: str, total: int, unit: str, done: int) -> None:
        self._log, self._task, self._total = log, task, total
        self._done = self._before = done
        self._started = time.monotonic()
        log._beat(title=title, total=total, unit=unit, done=done, rate=0.0, eta_s=None, note="")

    def advance(self, amount: int = 1) -> None:
        self._task.advance(amount)
        self._done += amount
        rate = (self._done - self._before) / max(time.monotonic() - self._started, 1e-9)
        eta = (self._total - self._done) / rate if rate > 0 else None
        self._log._beat(done=self._done, rate=rate, eta_s=eta)

    def note(self, text: str) -> None:
        self._task.note(text)
        self._log._beat(note=text)


def running(workdir: Path) -> list[RunDocument]:
    """Runs that say they are running, newest first; those of this host whose process is gone are left out."""
    folder = workdir / "runs"
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True)[:200] if folder.is_dir() else []:
        try:
            run = RunDocument.from_bytes(path.read_bytes(), str(path))
        except (UnicPipeError, OSError):
            continue
        dead = run.host == socket.gethostname() and not psutil.pid_exists(run.pid)
        if run.state == "running" and not dead:
            found.append(run)
    return found


def silent_for(run: RunDocument) -> float:
    """Seconds since a run was last heard of."""
    return (datetime.now(UTC) - datetime.fromisoformat(run.updated)).total_seconds()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
