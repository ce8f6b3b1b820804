"""Drives `ranks.py`: one process that forks those which train together, so that torch is imported once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics

VIEWS = ("--set", "views.patch=1", "--set", "views.patch_every=2")
"""Every other epoch has no patches: the patch ladder gets no gradient there, nor decay."""
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
"""Of weights and running statistics at the end; they differ by about 1e-6, and by more than 1e-3 where a rank normalises
by itself."""


@dataclass
class Ranks:
    """Runs `unic-pipe distill` in several processes that train together (see `ranks.py`)."""

    process: subprocess.Popen[str]
    out: Path

    def __call__(self, work: Any, size: int, *more: str, signals: Sequence[tuple[int, int, str]] = ()) -> list[int]:
        """Exit codes by rank. `signals`: (rank, step, name of a signal) that a rank sends itself before a step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        command = ["distill", "--no-live-check", "--device", "cpu", *more]
        request = {"command": command, "folder": str(work.folder), "size": size, "out": str(self.out)}
        self.process.stdin.write(json.dumps(request | {"signals": list(signals)}) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def said(self, rank: int) -> str:
        """What a rank printed in the last run."""
        return (self.out / f"{rank}.log").read_text()

    def everything(self) -> str:
        """What all ranks printed in the last run."""
        return "".join(self.said(rank) for rank in range(len(list(self.out.glob("*.log")))))

    def learned(self) -> dict[tuple[str, int], tuple[int, list[int]]]:
        """By student and step of the last run: the view, and the rows of the global batch in order."""
        found: dict[tuple[str, int], tuple[int, list[int]]] = {}
        for rank in range(len(list(self.out.glob("*.rows")))):
            for line in (self.out / f"{rank}.rows").read_text().splitlines():
                name, step, view, rows = json.loads(line)
                found[name, step] = view, [*found.get((name, step), (view, []))[1], *rows]
        return found


@contextmanager
def started(out: Path) -> Iterator[Ranks]:
    """The process, ready; what ranks print is in `out`."""
    script = Path(__file__).with_name("ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Ranks(process, out)
    process.stdin.close()
    assert process.wait(30) == 0


def copy_of(work: Any, folder: Path) -> Any:
    shutil.copytree(work.folder, folder, symlinks=True)
    return type(work)(folder)


def state_of(work: Any, name: str = "tiny") -> Any:
    """The last checkpoint's state."""
    file = sorted(work.student(name).glob("checkpoints/*.pt"))[-1]
    return torch.load(file, weights_only=True)["state"]


def metrics_of(work: Any, name: str = "tiny") -> list[dict[str, float]]:
    rows = read_metrics(LocalStore(work.student(name)))
    for row in rows:
        for name in TIMINGS:
            row.pop(name, None)
    return rows


def assert_close(mine: Any, theirs: Any, tolerance: Mapping[str, float] = TOLERANCE) -> None:
    for part in ("student", "ladder"):
        assert mine[part].keys() == theirs[part].keys()
        for key, value in theirs[part].items():
            torch.testing.assert_close(mine[part][key], value, rtol=tolerance["rtol"], atol=tolerance["atol"])
    torch.testing.assert_close(
        mine.get("average", []), theirs.get("average", []), rtol=tolerance["rtol"], atol=tolerance["atol"]
    )
    assert mine.keys() == theirs.keys()


def assert_same_student(one: Any, other: Any, name: str = "tiny", tolerance: Mapping[str, float] = TOLERANCE) -> None:
    """To within rounding: weights, ladder, metrics."""
    assert_close(state_of(one, name), state_of(other, name), tolerance)
    mine, theirs = metrics_of(one, name), metrics_of(other, name)
    assert len(mine) == len(theirs)
    for row, expected in zip(mine, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
