"""Named pipes, devices, loops and bombs where a file was expected: an error in plain words at once, never a wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.encoders.texts import read_texts
from unic_pipe.pipeline.samples.lists import read_text
from unic_pipe.pipeline.samples.patterns import expand_braces
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.errors import UnicPipeError, UserError

pytestmark = pytest.mark.timeout(60)
PROGRAM = Path(sys.executable).with_name("unic-pipe")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def in_words(error: UnicPipeError, path: Path) -> None:
    assert path.name in error.message
    assert 1 <= len(str(error).splitlines()) <= 3


NOT_FILES = [fifo, device, dangling, circle, folder]


@pytest.mark.parametrize("make", NOT_FILES)
@pytest.mark.parametrize("name", ["x.tar", "images/a.png", "classes/one/a.png"])
def test_samples(raw: Any, make: Callable[[Path], None], name: str) -> None:
    path = raw.folder / "more" / name
    path.parent.mkdir(parents=True)
    make(path)
    if name.startswith("classes"):
        (path.parents[1] / "two").mkdir()
        make(path.parents[1] / "two" / "a.png")
    source = "more/x.tar" if name == "x.tar" else f"more/{name.partition('/')[0]}"
    with pytest.raises(UnicPipeError) as caught:
        raw.index(f"samples.datasets.train.source={source}", "evaluate.benchmarks={}")
    assert 1 <= len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("make", NOT_FILES)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "labels.csv", "texts.npz", "texts.safetensors"])
def test_files_that_settings_name(raw: Any, make: Callable[[Path], None], name: str) -> None:
    path = raw.folder / name
    make(path)
    doors: dict[str, Callable[[], object]] = {
        "x": lambda: raw.inventory(f"teachers.lite0.weights={name}").teacher("lite0"),
        "texts": lambda: read_texts(path),
        "labels": lambda: read_text(path),
    }
    with pytest.raises(UnicPipeError) as caught:
        doors[path.stem]()
    in_words(caught.value, path)


@pytest.mark.parametrize("make", NOT_FILES)
def test_a_configuration(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.yaml")
    with pytest.raises(UserError) as caught:
        load_workspace(tmp_path / "x.yaml")
    in_words(caught.value, tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text", ["a{0000..99999999}.tar", "{0..999}" * 9, "{1..9}{1..999999999999999999}", "{a,b}" * 99]
)
def test_ranges_of_any_number_of_tars(text: str) -> None:
    with pytest.raises(UserError, match="stands for"):
        expand_braces(text)
    assert len(expand_braces("train-{0000..0146}.tar")) == 147
    assert expand_braces("{" + "9" * 30 + "..1}") == ["9" * 30 + "..1"]


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "--json"], ["--help"], ["teachers"], ["verify"], ["plan"]]
)
def test_terminals_of_any_encoding_and_none(raw: Any, arguments: list[str]) -> None:
    """Names that are no UTF-8, a terminal of ASCII, output that is closed, or whose reader has gone."""
    odd = os.fsencode(raw.folder / "data" / "é") + b"\xff"
    os.mkdir(odd)
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    config = raw.folder / "unic-pipe.yaml"
    config.write_text(config.read_text().replace("data/test-*.tar", "data/é/*.tar"))
    command = [PROGRAM, *arguments]
    whole = subprocess.run(command, cwd=raw.folder, env=ascii_only, capture_output=True, check=False)
    assert b"mistake in unic-pipe" not in whole.stderr, whole.stderr
    assert b"Traceback" not in whole.stderr, whole.stderr
    for tail in ("| head -c 1 > /dev/null", ">&-", ">&- 2>&-", "> /dev/full"):
        text = f"{PROGRAM} {' '.join(arguments)} {tail}"
        ended = subprocess.run(["bash", "-c", text], cwd=raw.folder, capture_output=True, check=False, text=True)
        assert "mistake in unic-pipe" not in ended.stderr, (tail, ended.stderr)
        assert "Traceback" not in ended.stderr, (tail, ended.stderr)
        assert "Exception ignored" not in ended.stderr, (tail, ended.stderr)


def test_an_extra_that_is_not_installed(raw: Any) -> None:
    """As without `pip install ".[s3]"`: what to install is said."""
    program = (
        "import sys; sys.modules['s3fs'] = None; sys.argv = ['unic-pipe', 'index', 'train']\n"
        "from unic_pipe.cli.main import main\nmain()\n"
    )
    config = raw.folder / "unic-pipe.yaml"
    config.write_text(config.read_text().replace("data/train-*.tar", "s3://bucket/train-*.tar"))
    ended = subprocess.run([sys.executable, "-c", program], cwd=raw.folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert 'pip install ".[s3]"' in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3
