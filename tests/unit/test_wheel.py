"""What a release holds, says of itself and does in an environment of its own: `make package`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
LAYERS = ("cli", "stages", "pipeline", "schemas")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source distribution, and a wheel that pip made of it."""
    folder = tmp_path_factory.mktemp("release")
    _run(ROOT, sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder))
    [sdist] = folder.glob("*.tar.gz")
    _run(folder, *_pip("wheel", "--no-build-isolation"), "--wheel-dir", str(folder), str(sdist))
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(release: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and all else from here, so that PyTorch is not downloaded again."""
    folder = tmp_path_factory.mktemp("installed")
    _run(folder, sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    python = folder / "venv/bin/python"
    _run(folder, *_pip("--python", str(python), "install"), str(release[1]))
    [packages] = folder.glob("venv/lib/python*/site-packages")
    (packages / "zz_packages.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return python.parent


def _pip(*words: str) -> list[str]:
    return [sys.executable, "-m", "pip", *words, "--quiet", "--no-index", "--no-deps"]


def _run(folder: Path, *command: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _about(wheel: Path) -> tuple[Message, set[str]]:
    """The metadata, and the files beside it."""
    archive = zipfile.ZipFile(wheel)
    folder = f"unic_pipe-{PROJECT['version']}.dist-info/"
    files = {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}
    return BytesParser().parsebytes(archive.read(f"{folder}METADATA")), files


def _expected() -> set[str]:
    kinds = (".py", ".j2", ".css", ".toml", ".safetensors")
    files = [p for layer in LAYERS for p in (ROOT / layer).rglob("*") if p.suffix in kinds]
    own = {f"unic_pipe/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    return {f"unic_pipe/{path.relative_to(ROOT).as_posix()}" for path in files} | own


def test_the_wheel_holds_every_file_once(release: tuple[Path, Path]) -> None:
    names = [n for n in zipfile.ZipFile(release[1]).namelist() if ".dist-info/" not in n]
    assert sorted(names) == sorted(_expected())
    with tarfile.open(release[0]) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= inside


def test_the_checkout_builds_the_same_wheel(release: tuple[Path, Path], tmp_path: Path) -> None:
    _run(ROOT, sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    [wheel] = tmp_path.glob("*.whl")
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(release[1])
    assert {n: ours.read(n) for n in ours.namelist()} == {n: theirs.read(n) for n in theirs.namelist()}


def test_what_it_says_of_itself(release: tuple[Path, Path]) -> None:
    """The description renders, and an index would take both files."""
    said = _run(ROOT, sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, release))
    assert said.count("PASSED") == 2
    about, files = _about(release[1])
    assert (about["Name"], about["Version"], about["Requires-Python"]) == ("unic-pipe", PROJECT["version"], ">=3.11")
    assert (about["License-Expression"], about["License-File"]) == ("MIT", "LICENSE")
    assert "licenses/LICENSE" in files
    assert (about["Description-Content-Type"], about["Metadata-Version"]) == ("text/markdown", "2.4")
    assert str(about.get_payload()).startswith("# unic-pipe\n")
    classifiers = about.get_all("Classifier") or []
    assert not [text for text in classifiers if text.startswith("Private")]
    assert "Typing :: Typed" in classifiers
    assert set(about.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])


def test_it_runs_in_an_environment_of_its_own(installed: Path, tmp_path: Path) -> None:
    """Outside the checkout, from own images to their status."""
    code = (
        "import sys, unic_pipe, unic_pipe.cli.main, unic_pipe.schemas.benchmarks as b; from pathlib import Path\n"
        "place = Path(unic_pipe.__file__); assert place.is_relative_to(sys.prefix), place\n"
        "assert (place.parent / 'py.typed').exists() and len(b.cards()) > 20; print(unic_pipe.__version__)"
    )
    assert _run(tmp_path, str(installed / "python"), "-c", code) == f"{PROJECT['version']}\n"
    program = str(installed / "unic-pipe")
    assert _run(tmp_path, program, "--version") == f"unic-pipe {PROJECT['version']}\n"
    assert "unic-pipe demo" in _run(tmp_path, program, "--help")
    for number in range(12):
        path = tmp_path / "photos" / ("train" if number < 8 else "test") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number, 99, 9)).save(path)
    _run(tmp_path, program, "init", "--data", "photos", "--teachers", "lite0")
    assert "missing" in _run(tmp_path, program, "status")
