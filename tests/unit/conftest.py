"""Fixtures of the samples' tests: real images and real tars."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """An encoded image whose pixels depend on a number."""

    def make(number: int, kind: str = "PNG", size: int = 8) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """Writes (name, bytes) members with `tarfile`."""

    def write(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def shards(tmp_path: Path, picture: Callable[..., bytes], write_tar: Callable[..., Path]) -> Callable[..., Path]:
    """Writes `data/<name>-000N.tar` with `rows` labelled samples each, under `tmp_path`; keys repeat across tars."""

    def write(name: str, numbers: Iterable[int], rows: int = 6, classes: int = 3) -> Path:
        for n in numbers:
            members = []
            for i in range(rows):
                members.append((f"{i:04d}.png", picture(1000 * n + i)))
                members.append((f"{i:04d}.cls", str((i * 7 + n) % classes).encode()))
            write_tar(tmp_path / "data" / f"{name}-{n:04d}.tar", members)
        return tmp_path

    return write
