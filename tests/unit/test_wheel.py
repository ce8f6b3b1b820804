"""What a release holds: every module of the four folders, once, and the files that they read."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("cli", "stages", "pipeline", "schemas")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source distribution, and a wheel built from it."""
    folder = tmp_path_factory.mktemp("release")
    _build(ROOT, "sdist", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    _build(folder / sdist.name.removesuffix(".tar.gz"), "wheel", folder)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


def _build(project: Path, target: str, into: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _expected() -> set[str]:
    kinds = (".py", ".j2", ".css", ".toml", ".safetensors")
    files = [p for layer in LAYERS for p in (ROOT / layer).rglob("*") if p.suffix in kinds]
    own = {f"unic_pipe/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    return {f"unic_pipe/{path.relative_to(ROOT).as_posix()}" for path in files} | own


def test_the_wheel_holds_every_file_once(release: tuple[Path, Path]) -> None:
    names = [n for n in zipfile.ZipFile(release[1]).namelist() if ".dist-info/" not in n]
    assert sorted(names) == sorted(_expected())


def test_the_checkout_builds_the_same_wheel(release: tuple[Path, Path], tmp_path: Path) -> None:
    _build(ROOT, "wheel", tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(release[1])
    assert {n: ours.read(n) for n in ours.namelist()} == {n: theirs.read(n) for n in theirs.namelist()}


def test_the_wheel_runs_alone(release: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked in an empty folder, with nothing of the checkout on the path."""
    zipfile.ZipFile(release[1]).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import unic_pipe.cli.main, unic_pipe.schemas.benchmarks as b\n"
        "assert unic_pipe.__file__.startswith(sys.argv[1]); print(len(b.cards()) > 20)"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
