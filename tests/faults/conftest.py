"""The zygote (see `zygote.py`) as a fixture: commands that are interrupted at chosen moments, without new imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is of the fault suite: `make faults`, not `make test`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal that ended it), and the kinds of changes it made to files."""

    status: int
    seconds: float
    changes: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Zygote:
    """Runs `unic-pipe` commands in forked processes."""

    def __init__(self, folder: Path, log: Path) -> None:
        script = Path(__file__).with_name("zygote.py")
        self.log = log
        # One thread: OpenMP's threads would be missing in the forked processes.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self, folder: Path, *command: str, **interruption: Any) -> Ended:
        """Run a command to its end, or until `after_s` seconds, or `before` the `nth` change of a kind; by `signal`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        trace = self.log.with_suffix(".trace")
        request = {"command": command, "folder": str(folder), "log": str(self.log), "trace": str(trace)}
        trace.write_bytes(b"")
        process.stdin.write(json.dumps(request | interruption) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        return Ended(**answer, changes=tuple(trace.read_text().splitlines()))

    def output(self) -> str:
        """The end of what the commands have printed."""
        return self.log.read_text()[-3000:]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0


@pytest.fixture(scope="session")
def zygote(raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(raw_template.folder, tmp_path_factory.mktemp("zygote") / "log")
    yield process
    process.close()
