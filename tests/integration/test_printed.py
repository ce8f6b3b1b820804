"""What machines read: every command with `--json` prints one object of its documented kind, and nothing else on stdout."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from unic_pipe.cli.main import app
from unic_pipe.schemas.printed import PRINTED, WrittenReport
from unic_pipe.schemas.status import StatusReport

LOOKING = (
    "status", "plan", "verify --quick", "gc", "teachers", "doctor", "benchmarks", "config", "config --describe seed",
    "index", "extract",
)  # fmt: skip


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(app)
    found = {}
    for name, command in root.commands.items():
        found |= {f"{name} {inner}": each for inner, each in getattr(command, "commands", {name: None}).items() if each}
        found[name] = command
    return found


def test_every_command_that_prints_json_says_what() -> None:
    able = {name for name, c in commands().items() if any(p.name == "as_json" for p in c.params)}
    assert able == set(PRINTED)


@pytest.mark.parametrize("line", LOOKING)
def test_one_object_of_the_documented_kind(line: str, extracted: Any) -> None:
    words = line.split()
    named = " ".join(words[:2]) if words[0] == "report" else words[0]
    where = [] if named == "doctor" else ["--config", str(extracted.folder)]
    ended = CliRunner().invoke(app, [*words, "--json", *where])
    assert ended.exit_code in (0, 1), ended.output
    model = PRINTED[named].model_validate_json(ended.stdout)
    assert model.model_dump(mode="json", exclude_unset=True).keys() == json.loads(ended.stdout).keys()


@pytest.mark.slow
def test_what_was_written_and_quietly(raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["init", "--data", str(raw.folder / "data"), "--teachers", "lite0", "--json"])
    assert WrittenReport.model_validate_json(ended.stdout).paths == (str(tmp_path / "unic-pipe.yaml"),), ended.output
    done = subprocess.run(
        [sys.executable, "-m", "unic_pipe", "index", "--json", "--quiet"],
        capture_output=True, text=True, check=True, cwd=raw.folder,
    )  # fmt: skip
    report = StatusReport.model_validate_json(done.stdout)
    assert {a.state for a in report.artefacts if a.stage == "index"} == {"fresh"}
    assert done.stderr == ""


def test_init_asks_on_a_terminal_alone(raw: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unic_pipe", "init"]
    alone = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False)
    assert (alone.returncode, "unic-pipe init --data PATH" in alone.stderr) == (2, True)
    ours, theirs = pty.openpty()
    asked = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, close_fds=True)
    os.close(theirs)
    said = ""
    for prompt, answer in (
        ("Your images", str(raw.folder / "data")),
        ("Teachers, by name", "lite0"),
        ("Student, a timm architecture", ""),
        ("pretrained weights", "n"),
    ):
        said = _read_until(ours, prompt)
        os.write(ours, f"{answer}\n".encode())
    said = _read_until(ours, "Next:")
    assert asked.wait(60) == 0
    assert "--teachers lite0 --student vit_small_patch16_224" in " ".join(said.split())
    assert (tmp_path / "unic-pipe.yaml").exists()


def _read_until(terminal: int, text: str) -> str:
    said, end = "", time.monotonic() + 120
    while text not in said:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, said
        said += os.read(terminal, 4096).decode(errors="replace")
    return said


@pytest.mark.parametrize(
    ("line", "found"),
    [("extract --teacher li", "lite0"), ("index t", "test"), ("distill -s t", "tiny"), ("benchmarks flow", "flowers")],
)
def test_a_shell_completes_names(line: str, found: str, raw: Any) -> None:
    words = line.split()
    asked = {"COMP_WORDS": f"unic-pipe {line}", "COMP_CWORD": str(len(words)), "_UNIC_PIPE_COMPLETE": "complete_bash"}
    program = "from unic_pipe.cli.main import app; app(prog_name='unic-pipe')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=raw.folder,
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found in done.stdout.split(), done.stderr
