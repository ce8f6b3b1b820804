"""Golden numbers: outputs of official implementations on fixed inputs (see data/README.md, data/recipes/README.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Numbers = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def folder() -> Path:
    """UNIC_PIPE_GOLDEN names another folder with the same names and other numbers, or just its folder of recipes."""
    return Path(os.environ.get("UNIC_PIPE_GOLDEN", Path(__file__).parent / "data"))


@pytest.fixture(scope="session")
def recipes(folder: Path) -> Callable[[str], Numbers]:
    """Reads the numbers of a recipe."""
    found = folder / "recipes" if (folder / "recipes").is_dir() else folder
    if not (found / "phi_s.npz").exists():
        pytest.skip(f"UNIC_PIPE_GOLDEN: {folder} holds no recipes")

    def read(name: str) -> Numbers:
        with np.load(found / f"{name}.npz") as archive:
            return {key: archive[key] for key in archive.files}

    return read


@pytest.fixture(scope="session")
def golden(folder: Path) -> Path:
    """The folder of the numbers of UNIC and of its teachers."""
    if not (folder / "unic.npz").exists() and ((folder / "recipes").is_dir() or (folder / "phi_s.npz").exists()):
        pytest.skip(f"UNIC_PIPE_GOLDEN: {folder} holds recipes only")
    return folder
