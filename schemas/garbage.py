"""What `gc --json` prints."""

from __future__ import annotations

from typing import Literal

from unic_pipe.schemas.base import Model


class GarbageItem(Model):
    """Something that nothing names any more."""

    path: str
    """Relative to the working folder."""
    kind: Literal["features", "students", "evaluations", "samples", "damaged", "temporary", "run"]
    bytes: int
    files: int
    why: str


class GarbageReport(Model):
    """`unic-pipe gc --json`."""

    removed: bool
    bytes: int
    items: tuple[GarbageItem, ...]
    unknown: tuple[str, ...]
    """What nothing names either, and is left alone because unic-pipe did not write all of it."""
