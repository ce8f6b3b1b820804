"""Every command but `teachers --fetch` and `benchmarks --download` works where sockets are forbidden, and asks nobody.

Names that are no names are refused on the way, and nothing is written outside the working folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.cli.main import app

PROGRAM = """
import json, os, sys

asked = []
def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[:1]}")
        raise ConnectionRefusedError(f"the test forbids {event}")
sys.addaudithook(refuse)

from unic_pipe.cli.errors import guarded
from unic_pipe.cli.main import app

for folder, arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    asked.clear()
    sys.argv[1:] = arguments
    print("RAN", json.dumps(arguments), file=sys.stderr)
    code = guarded(lambda: app(args=arguments, prog_name="unic-pipe", standalone_mode=False), False)
    sys.stderr.flush()
    print("\\nENDED", json.dumps([code, asked]), flush=True)
"""
"""Runs commands one after the other in one process, with a hook below everything that Python can do with sockets."""
ROOT = Path(__file__).parents[2]


class Ended:
    """How a command ended: its exit code, whom it asked, and what it said on stderr."""

    def __init__(self, code: int, asked: list[str], said: str) -> None:
        self.code, self.asked, self.said = code, asked, said


def run(home: Path, *commands: tuple[Path, str]) -> list[Ended]:
    """Run command lines in their folders, with empty caches of downloads, in a program that may not use sockets."""
    for name in ("hub", "torch", "cache"):
        (home / name).mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "TORCH_HOME", "XDG_"))}
    kept |= {"HF_HOME": str(home / "hub"), "TORCH_HOME": str(home / "torch"), "XDG_CACHE_HOME": str(home / "cache")}
    given = json.dumps([[str(folder), line.split(" ")] for folder, line in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], env={**kept, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    ended = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    said = done.stderr.split("RAN ")[1:]
    assert len(ended) == len(commands), done.stderr[-2000:]
    return [Ended(code, asked, text) for (code, asked), text in zip(ended, said, strict=True)]


def everything(folder: Path) -> set[str]:
    """Every file and link below a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}


COMMANDS = (
    "index",
    "plan",
    "status",
    "run",
    "extract",
    "distill",
    "evaluate",
    "status --json",
    "report html",
    "report compare .",
    "report cache --no-plot",
    "verify --live 2",
    "gc --yes",
    "teachers",
    "benchmarks",
    "benchmarks dtd",
    "doctor",
    "bench --quick",
    "export tiny unic.pth",
    "export tiny --to timm",
    "import unic.pth again --arg num_heads=3",
    "evaluate --encoder again=encoders/again",
    "pack files shards",
    "config",
    "config --describe cache",
    "config --schema",
    "embed student:tiny images -o features.parquet",
    "embed encoders/again images -o features.npz",
)


@pytest.mark.slow
def test_no_command_asks_the_network(raw: Any, tmp_path: Path, tools: Any) -> None:
    config = raw.folder / "unic-pipe.yaml"
    config.write_text(config.read_text().replace("  datasets:\n", "  datasets:\n    files: {source: images}\n"))
    for number, (name, data) in enumerate(tools.digit_members(0, 12)):
        if name.endswith(".png"):
            target = raw.folder / "images" / f"class{number % 3}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    commands = [(raw.folder, line) for line in COMMANDS]
    commands += [(fresh, f"init --data {raw.folder / 'data'}"), (fresh, "status"), (fresh, "plan"), (fresh, "teachers")]
    ended = run(tmp_path / "home", *commands)
    assert {line: e.asked for (_, line), e in zip(commands, ended, strict=True) if e.asked} == {}
    unplanned = (fresh, "plan")  # nothing is indexed there: it says so, and exits 1
    failed = {c: e.said for c, e in zip(commands, ended, strict=True) if e.code != 0}
    assert failed.keys() == {unplanned}, failed
    covered = {line.split()[0] for _, line in commands}
    known = {c.callback.__name__.rstrip("_") for c in app.registered_commands if c.callback}
    # The demo is these stages on scikit-learn's digits; it takes five minutes.
    assert known | {g.name for g in app.registered_groups} == covered | {"demo"}


REFUSED = (
    ("status --set teachers.lite0.model_args.pretrained=true", "model_args.pretrained: unic-pipe decides this"),
    ("extract --set students.tiny.model_args.checkpoint_path=x.pth", "checkpoint_path: unic-pipe decides this"),
    ("distill --set students.tiny.architecture=hf-hub:timm/vit_tiny_patch16_224", "not the name of a timm"),
    ("extract --set teachers.lite0.encoder=hf-hub:timm/vit_tiny_patch16_224", "is not on this machine"),
    ("extract --set teachers.lite0.encoder=hf-hub:../x", "does not name a repository"),
    ("extract --set teachers.lite0.encoder=timm:hf-hub:timm/vit_tiny_patch16_224", "has no model"),
    ("extract --set teachers.lite0.encoder=timm:vit_tiny_patch16_224", "no weights. Searched"),
    ("evaluate --encoder timm:hf-hub:timm/x.y", "has no model"),
    ("evaluate --encoder hf-hub:timm/x.y", "is not on this machine"),
    ("evaluate --encoder timm:vit_tiny_patch16_224.augreg_in21k", "no weights. Searched"),
    ("evaluate --encoder student:../../x", "not a usable name"),
    ("distill --student ../../x", "not a usable name"),
    ("distill --student ", "not a usable name"),
    ("distill --student=-rf", "not a usable name"),
    ("distill --student .x", "not a usable name"),
    (f"distill --student {'x' * 101}", "not a usable name"),
    (f"distill --live-teachers --student {'x' * 98}", "not a usable name"),
    ("extract --teacher ../x", "No teacher is named"),
    ("index ../x", "no dataset"),
    ("pack ../x shards", "no dataset"),
    ("import data/train-0000.tar ../x", "not a usable name"),
    ("export ../x unic.pth", "No finished student"),
    ("benchmarks ../x", "no benchmark"),
)
DOWNLOADS = ("teachers --fetch --set teachers.lite0.encoder=timm:vit_tiny_patch16_224", "benchmarks dtd --download")
"""The two commands that do ask: what proves that the hook sees what it is to forbid."""


@pytest.mark.slow
def test_bad_names_and_hubs_are_refused_and_nothing_is_written(extracted: Any, tmp_path: Path) -> None:
    before = everything(tmp_path)
    commands = [(extracted.folder, line) for line in (*(line for line, _ in REFUSED), *DOWNLOADS)]
    *ended, fetch, benchmark = run(tmp_path / "home", *commands)
    assert [(e.code, bool(e.asked)) for e in (fetch, benchmark)] == [(1, True)] * 2, "the hook sees what it forbids"
    wrong = {
        line: (e.code, e.asked, e.said)
        for (line, why), e in zip(REFUSED, ended, strict=True)
        if e.code != 2 or e.asked or why.lower() not in e.said.lower()
    }
    assert wrong == {}
    made = {name for name in everything(tmp_path) - before if not name.startswith(("home/", "work/runs/"))}
    assert made == set()
