"""The code of README runs in a working folder, and so do those of its commands that are cheap."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, blocks, inline_commands

from unic_pipe.cli.errors import guarded
from unic_pipe.cli.main import app

CHEAP = (
    "unic-pipe status", "unic-pipe status --json", "unic-pipe doctor", "unic-pipe benchmarks", "unic-pipe plan",
    "unic-pipe verify", "unic-pipe verify --seal", "unic-pipe extract", "unic-pipe distill",
)  # fmt: skip
"""`extract` and `distill` have nothing to do here."""
HERE = {
    "train-dino": "train-lite0",
    "students/main": "students/tiny",
    'adapt("dino")': 'adapt("lite0")',
    "batch=256": "batch=8",
}
"""What README calls what the working folder of the tests has."""

SMALLER = {"image_size: 64": "image_size: 32", "epochs: 5, warmup_epochs: 1": "epochs: 1, warmup_epochs: 0"}
"""What the tutorial says, and what is enough for a test."""


def test_the_code_runs(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.folder)
    elsewhere = (ROOT / "docs/python.md").read_text()  # tested in test_python_api.py
    codes = [code for kind, code in blocks() if kind == "python" and code not in elsewhere]
    assert len(codes) == 3
    names: dict[str, Any] = {"images": torch.zeros(2, 3, 32, 32)}
    for code in codes:
        for readme, here in HERE.items():
            code = code.replace(readme, here)
        exec(code, names)
    assert names["tokens"].shape == (2, 1 + 16, 48)
    assert names["images"].shape[1:] == (3, 64, 64)
    assert {name: x.shape[0] for name, x in names["targets"].items()} == dict.fromkeys(("cls", "patch"), 8)
    for number in range(6):
        ours = names["cache"].read_block(0, "patch", number)
        theirs = names["read_block"]("features/train-lite0", "patch", number)
        assert (theirs[ours.valid] == ours.values[ours.valid]).all()


def test_cheap_commands_run(trained: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said = {part.strip() for line in inline_commands() for part in line.split("&&")}
    said |= {line.split(" #")[0].strip() for kind, code in blocks() if kind == "sh" for line in code.splitlines()}
    monkeypatch.chdir(trained.folder)
    for line in CHEAP:
        assert line in said, line
        code = guarded(
            lambda line=line: app(args=line.split()[1:], prog_name="unic-pipe", standalone_mode=False), False
        )
        shown = capfd.readouterr()
        assert code == 0, (line, shown.err)
        assert (shown.out + shown.err).strip(), line


def test_the_tutorial_runs(raw: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its configuration, smaller and on digits, and its commands."""
    text = (ROOT / "docs/continue.md").read_text()
    (yaml,), (sh,) = (re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for kind in ("yaml", "sh"))
    monkeypatch.chdir(raw.folder)
    for tutorial, here in SMALLER.items():
        assert tutorial in yaml
        yaml = yaml.replace(tutorial, here)
    (raw.folder / "unic-pipe.yaml").write_text(yaml)
    for line in sh.splitlines():
        code = guarded(
            lambda line=line: app(args=line.split()[1:], prog_name="unic-pipe", standalone_mode=False), False
        )
        shown = capfd.readouterr()
        assert code == 0, (line, shown.err)
    definition = raw.inventory().finished_students["mine"].manifest.definition
    assert (definition.config.mean, definition.parent) == (
        (0.5, 0.5, 0.5),
        raw.inventory().start("mine").definition.weights,
    )
    scores = (raw.folder / "evaluations/main/results.csv").read_text()
    assert {"mine", "itself", "larger"} <= {name for line in scores.splitlines() for name in line.split(",")}


def test_make_help_names_every_target() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in set(phony.split()) - {"clean", "lint", "types"}:
        assert f"make {target} " in makefile, target
