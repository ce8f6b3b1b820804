"""Fixtures of several test files: commands that are typed in this process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Said, Type


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Types a command in a folder, and reads what it says."""
    from unic_pipe.cli.errors import guarded
    from unic_pipe.cli.main import app

    monkeypatch.setenv("COLUMNS", "100")

    def run(folder: Path, *arguments: str) -> Said:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["unic-pipe", *arguments])
        capsys.readouterr()
        code = guarded(lambda: app(args=list(arguments), prog_name="unic-pipe", standalone_mode=False), debug=False)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Handlers are put back, whatever a test did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
