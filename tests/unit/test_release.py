"""What is written once for a release: the version, the extras, and the image for CUDA."""

from __future__ import annotations

import re
import tomllib

from documents import ROOT

import unic_pipe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"test", "docs", "check", "proof", "all"}
"""Extras of those who work on unic-pipe, and the one of all others."""


def test_the_version_is_known() -> None:
    """That it is the same everywhere: test_packaging.py."""
    assert unic_pipe.__version__ == PROJECT["version"]


def test_all_is_every_extra_for_users() -> None:
    [text] = EXTRAS["all"]
    match = re.fullmatch(r"unic-pipe\[([\w,-]+)\]", text)
    assert match is not None
    assert match[1].split(",") == sorted(EXTRAS.keys() - OURS)


def test_the_page_says_what_every_extra_is_for() -> None:
    table = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert table == sorted(EXTRAS.keys() - OURS | {"all", "proof"})


def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_is_built_of_what_a_wheel_needs() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    links = {path.readlink().name for path in (ROOT / "src/unic_pipe").iterdir() if path.is_symlink()}
    assert lines[0] == "*"
    assert kept == links | {"src", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    assert all((ROOT / name).exists() for name in kept)
    assert [words for kind, words in steps() if kind == "COPY"] == [". .", "--from=wheel /wheels /wheels"]
    assert {words.partition(" AS ")[2] for kind, words in steps() if kind == "FROM"} == {"wheel", ""}


def test_the_image_has_extras_and_a_python_that_exist() -> None:
    bases = [words.split()[0] for kind, words in steps() if kind == "FROM"]
    [base] = [words for kind, words in steps() if kind == "ARG" and words.startswith("BASE=")]
    assert re.fullmatch(r"BASE=nvidia/cuda:1\d\.\d\.\d-base-ubuntu24\.04", base)
    assert bases == ["python:3.12-slim", "$BASE"]
    assert "Programming Language :: Python :: 3.12" in PROJECT["classifiers"]  # that of Ubuntu 24.04
    runs = " ".join(words for kind, words in steps() if kind == "RUN")
    [extras] = re.findall(r"\.whl\)\[([\w,-]+)\]", runs)
    assert set(extras.split(",")) <= EXTRAS.keys() - OURS
    [torch] = re.findall(r'"(torch>=[\d.]+)"', runs)
    assert torch in PROJECT["dependencies"]


def test_the_image_runs_as_somebody_who_may_do_little() -> None:
    last = dict(steps())
    assert last["USER"] not in ("root", "0")
    assert last["ENTRYPOINT"] == '["unic-pipe"]'
    said = (ROOT / "docs/install.md").read_text()
    assert f'-v "$PWD:{last["WORKDIR"]}"' in said
    assert "--gpus all" in said
