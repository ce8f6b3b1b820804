"""What README and the pages say is true: commands parse, YAML is a configuration, links lead somewhere, and the rest."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from calibrated_cache import SHAPES, written
from documents import ROOT, blocks, documents, inline_commands
from ruamel.yaml import YAML

from unic_pipe.cli.main import app
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.config import Config

ELLIPSES = ("…", "...")


def commands() -> list[str]:
    """Every command line of ours, in blocks and in the text."""
    found = [line for kind, code in blocks() if kind == "sh" for line in code.splitlines()]
    return [part.strip() for line in [*found, *inline_commands()] for part in re.split(r"&&|;", line.split(" #")[0])]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in blocks()} == {"sh", "python", "yaml", "text"}
    assert len(commands()) > 40


@pytest.mark.parametrize("line", sorted({c for c in commands() if c.startswith("unic-pipe")}))
def test_every_command_line_parses(line: str) -> None:
    """By the real parser, options and their values; nothing is run."""
    words = [w for w in shlex.split(line)[1:] if w not in (*ELLIPSES, "--debug", "--quiet")]
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if not {"--help", "--version", "--install-completion"} & {*words}:
        command.make_context("unic-pipe", words)


def test_other_lines_are_make_targets_or_tools_of_everybody() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands():
        if line.startswith("make "):
            assert line.split()[1] in targets, line
        for script in re.findall(r"(?:python|sbatch) ((?:tests|examples)/\S+)", line):
            assert (ROOT / script).is_file(), line


def loaded(code: str, folder: Path) -> None:
    """Load a part of a configuration, with the samples that every configuration names."""
    tree = YAML(typ="safe").load(code)
    tree.setdefault("samples", {}).setdefault("datasets", {"train": {"source": "train"}})
    (folder / "unic-pipe.yaml").write_text(json.dumps(tree))
    load_workspace(folder)


@pytest.mark.parametrize("code", [code for kind, code in blocks() if kind == "yaml"])
def test_every_yaml_block_is_a_configuration(code: str, tmp_path: Path) -> None:
    loaded(code, tmp_path)


def yaml_in_the_text() -> list[str]:
    """Whole sections of a configuration that stand in a sentence."""
    sections = "|".join(Config.model_fields)
    texts = [" ".join(document.read_text().split()) for document in documents()]
    return sorted({code for text in texts for code in re.findall(rf"(?<!`)`((?:{sections}): \{{[^`]*\}})`(?!`)", text)})


@pytest.mark.parametrize("code", yaml_in_the_text())
def test_yaml_in_the_text_is_a_configuration(code: str, tmp_path: Path) -> None:
    loaded(code, tmp_path)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_examples_are_configurations(tmp_path: Path) -> None:
    for path in (ROOT / "examples").glob("*.yaml"):
        YAML(typ="safe").load(path.read_text())
        load_workspace(path)


def test_every_link_and_picture_is_there() -> None:
    for document in documents():
        text = document.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            assert link.startswith("http") or (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize("codec", ["float16", "int8", "scalar", "klt"])
def test_the_snippet_for_plain_zarr_reads_every_codec(codec: str, tmp_path: Path) -> None:
    (code,) = [code for kind, code in blocks() if kind == "python" and "def read_block" in code]
    assert len(code.splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(code, names)
    written(tmp_path / "features", codec)
    cache = FeatureCache.open(tmp_path / "features")
    escapes = list((tmp_path / "features").glob("view-000/*_escape/c/1"))
    assert len(escapes) == (1 if codec in ("scalar", "klt") else 0)
    for token in SHAPES:
        for block in range(3):
            ours, theirs = (
                cache.read_block(0, token, block),
                names["read_block"](str(tmp_path / "features"), token, block),
            )
            assert theirs.shape == ours.values.shape
            assert np.isnan(theirs).reshape(len(theirs), -1).all(1).tolist() == (~ours.valid).tolist()
            close = np.abs(theirs[ours.valid] - ours.values[ours.valid])
            assert close.max() <= 1e-5 * max(1.0, np.abs(ours.values[ours.valid]).max()), (codec, token, block)
