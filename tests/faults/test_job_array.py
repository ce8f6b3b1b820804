"""Three parts of a job array at once, as processes: the same bytes as one run, and each says what is still missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[2])
KLT = ("cache.codec=klt", "distill.validation=null")


def part(work: Any, which: str) -> subprocess.Popen[str]:
    overrides = [word for setting in KLT for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "unic_pipe", "extract", "--device", "cpu", "--part", which, *overrides],
        cwd=work.folder, env={**os.environ, "PYTHONPATH": ROOT}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_three_parts_at_once(raw: Any, tools: Any, tmp_path: Path) -> None:
    """Calibration, folding and the pointer are raced for; the calibration of one is everybody's."""
    import shutil

    shutil.copytree(raw.folder, tmp_path / "alone", symlinks=True)
    alone = tools.work(tmp_path / "alone")
    alone.extract(*KLT)
    raw.index()
    first = part(raw, "2/4")
    _, error = first.communicate(timeout=240)
    assert first.returncode == 0, error
    assert "still missing overall, in parts 1, 3, 4" in error
    parts = [part(raw, f"{i}/4") for i in (1, 3, 4)]
    errors = [process.communicate(timeout=240)[1] for process in parts]
    assert [process.returncode for process in parts] == [0, 0, 0], errors
    assert any("units of all parts are there" in error for error in errors)
    assert raw.states(*KLT)["features/train/lite0"] == "fresh"
    assert raw.extract(*KLT)["train"].done == 0
    assert raw.content("features") == alone.content("features")
