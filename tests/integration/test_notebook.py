"""The notebook of the examples runs from its first cell to its last, in a fresh interpreter and an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/own-images.ipynb"


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text())
    assert (found["nbformat"], len({cell["id"] for cell in found["cells"]})) == (4, len(found["cells"]))
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]


def test_nobody_s_outputs_are_kept() -> None:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in found)


@pytest.mark.slow
def test_every_cell_runs_and_the_student_finds_digits(tmp_path: Path) -> None:
    program = "\n".join(cells()).replace("pipeline = Pipeline(config,", "pipeline = Pipeline(config, progress=False,")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    scores = {
        tuple(line.split()[:2]): float(line.split()[2]) for line in done.stdout.splitlines() if line.endswith(" %")
    }
    assert min(scores["mine", "logistic"], scores["lite0", "logistic"]) > 50, done.stdout
    assert "found: ['digit" in done.stdout
    assert "config.json" in done.stdout
