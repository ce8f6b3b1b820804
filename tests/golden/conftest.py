"""Golden numbers: outputs of official implementations on fixed inputs (see data/README.md)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files; UNIC_PIPE_GOLDEN names another one with the same names and other numbers."""
    return Path(os.environ.get("UNIC_PIPE_GOLDEN", Path(__file__).parent / "data"))
