"""The code of README and of every page runs in a working folder, and so do those of their commands that are cheap."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, Block, all_blocks, inline_commands
from PIL import Image

from unic_pipe.cli.errors import guarded
from unic_pipe.cli.main import app
from unic_pipe.pipeline.loggers import Run, send

CHEAP = ("unic-pipe status", "unic-pipe status --json", "unic-pipe doctor", "unic-pipe benchmarks", "unic-pipe verify --seal",
         "unic-pipe extract", "unic-pipe distill")  # fmt: skip
"""Of the commands in the text; `extract` and `distill` have nothing to do here."""
HERE = {
    "train-dino": "train-lite0",
    "students/main": "students/tiny",
    "students.main": "students.tiny",
    'adapt("dino")': 'adapt("lite0")',
    "batch=256": "batch=8",
}
"""What the pages call what the working folder of the tests has."""
TUTORIALS = ("continue.md", "export.md", "tutorial.md")
"""Pages whose blocks are run one after the other, in a folder that they make (export.md: by test_export.py)."""
SMALLER = {
    "image_size: 64": "image_size: 32",
    "epochs: 5, warmup_epochs: 1": "epochs: 1, warmup_epochs: 0",
    "  lite0: {}": "  lite0: {image_size: 64}",
    "  lite1: {}": "  lite1: {image_size: 64}",
    "image_size: 128": "image_size: 32",
    "recipe: unic": "recipe: gentle",
    "hidden: 1280": "hidden: 16",
    "hidden: 5120": "hidden: 32",
    "  benchmarks:\n    test:": "  c_values: [0.1, 1.0]\n  k_values: [5]\n  benchmarks:\n    test:",
}
"""What tutorials and `init` say, and what is enough for a test."""


def smaller(text: str) -> str:
    for told, here in SMALLER.items():
        text = text.replace(told, here)
    return re.sub(r"epochs: [0-9]{2,}", "epochs: 1", text)


def here(code: str) -> str:
    for told, ours in HERE.items():
        code = code.replace(told, ours)
    return code


def blocks_of(page: str, kind: str) -> list[str]:
    return [block.code for block in all_blocks() if (block.page, block.kind) == (page, kind) and not block.not_run]


def type_lines(code: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Run the lines of a block, one after the other; what the last one said."""
    shown = capfd.readouterr()
    for line in code.splitlines():
        words = [word for word in line.split(" #")[0].split() if word != "--quiet"]  # which the entry point takes
        assert words[0] == "unic-pipe", line
        code_ = guarded(lambda words=words: app(args=words[1:], prog_name="unic-pipe", standalone_mode=False), False)
        shown = capfd.readouterr()
        assert code_ == 0, (line, shown.err)
        assert (shown.out + shown.err).strip(), line
    return shown.out


def test_code_that_is_not_run_says_why() -> None:
    """And code that is the same in two places is the tutorial's."""
    reasons = [block.not_run for block in all_blocks() if block.not_run]
    assert len(reasons) <= 10
    assert all(len(reason) > 5 for reason in reasons)
    readme = [block.code for block in all_blocks() if block.page == "README.md" and not block.not_run]
    assert readme == [*blocks_of("tutorial.md", "sh"), *blocks_of("tutorial.md", "python")]


def test_the_code_runs(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.folder)
    pages = sorted(
        {block.page for block in all_blocks() if block.kind == "python" and not block.not_run}
        - {*TUTORIALS, "python.md"}
    )  # docs/python.md has its own test
    assert pages == ["README.md", "cache.md", "loggers.md", "students.md"]
    names: dict[str, dict[str, Any]] = {page: {"images": torch.zeros(2, 3, 32, 32)} for page in pages}
    for page in pages:
        for code in blocks_of(page, "python"):
            exec(here(code), names[page])
    assert names["README.md"]["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 48)
    assert names["students.md"]["tokens"].shape == (2, 1 + 16, 48)
    lines = names["loggers.md"]["Lines"]
    run = Run("student", "tiny", "tiny-1", trained.folder, trained.folder, {})
    send(run, [{"step": 1, "loss": 2.0}, {"step": 1, "val/loss": 3.0}], {"lines": lines}, pytest.fail)
    assert (trained.folder / "tiny-1.txt").read_text() == "1 ('loss', 2.0) ('val/loss', 3.0)\n"
    cache = names["cache.md"]
    assert cache["images"].shape[1:] == (3, 64, 64)
    assert {name: x.shape[0] for name, x in cache["targets"].items()} == dict.fromkeys(("cls", "patch"), 8)
    for number in range(6):
        ours = cache["cache"].read_block(0, "patch", number)
        theirs = cache["read_block"]("features/train-lite0", "patch", number)
        assert (theirs[ours.valid] == ours.values[ours.valid]).all()


def test_commands_run(trained: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Every block of commands outside of tutorials, and the cheap ones in the text."""
    said = {part.strip() for line in inline_commands() for part in line.split("&&")}
    monkeypatch.chdir(trained.folder)
    typed = [b for b in all_blocks() if b.kind == "sh" and not b.not_run and b.page not in ("README.md", *TUTORIALS)]
    assert len(typed) >= 4
    for block in [*typed, *(Block("", "sh", line, "") for line in CHEAP)]:
        assert block.page or block.code in said, block.code
        type_lines(here(block.code), capfd)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_own_images_in_five_commands(
    raw: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tutorial, on a few digits in class folders. `plan` measures for a minute, and is run by the test above."""
    for split, count in (("train", 24), ("test", 12)):
        for number, (name, image) in enumerate(m for m in tools.digit_members(0, 4 * count) if m[0].endswith("png")):
            path = tmp_path / "mine/photos" / split / f"digit-{number % 3}" / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < count:
                Image.open(io.BytesIO(image)).save(path)
    monkeypatch.chdir(tmp_path / "mine")
    (code,) = blocks_of("tutorial.md", "sh")
    init, *rest = [line for line in code.splitlines() if line != "unic-pipe plan"]
    type_lines(init, capfd)
    config = Path("unic-pipe.yaml")
    config.write_text(smaller(config.read_text()))
    said = type_lines("\n".join(rest), capfd)
    assert "fresh" in said
    names: dict[str, Any] = {}
    exec(blocks_of("tutorial.md", "python")[0], names)
    assert names["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 1280)
    scores = Path("evaluations/main/results.csv").read_text()
    assert {"main", "lite0", "lite1"} <= {name for line in scores.splitlines() for name in line.split(",")}
    assert Path("evaluations/main/report.html").exists()


@pytest.mark.slow
def test_continue_runs(raw: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its configuration, smaller and on digits, and its commands."""
    monkeypatch.chdir(raw.folder)
    (yaml,), (sh,) = blocks_of("continue.md", "yaml"), blocks_of("continue.md", "sh")
    (raw.folder / "unic-pipe.yaml").write_text(smaller(yaml))
    type_lines(sh, capfd)
    definition = raw.inventory().finished_students["mine"].manifest.definition
    assert (definition.config.mean, definition.parent) == (
        (0.5, 0.5, 0.5),
        raw.inventory().start("mine").definition.weights,
    )
    scores = (raw.folder / "evaluations/main/results.csv").read_text()
    assert {"mine", "itself", "larger"} <= {name for line in scores.splitlines() for name in line.split(",")}


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in set(phony.split()) - {"clean", "lint", "types"}:
        assert f"make {target} " in makefile, target
