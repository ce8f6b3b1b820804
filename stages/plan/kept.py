"""Measurements of before: kept in `runs/measurements/`, one file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.base import Document
from unic_pipe.schemas.errors import UserError

D = TypeVar("D", bound=Document)


class Kept:
    """What was measured in a working folder, and what is measured now."""

    def __init__(self, workdir: Path, anew: bool = False) -> None:
        """`anew`: nothing of before counts."""
        self._store, self._anew = LocalStore(workdir / "runs"), anew
        self._now: set[str] = set()
        self.since: float | None = None
        """When the oldest one that was used was made, in seconds since 1970; None: none was."""

    def find(self, key: str, kind: type[D], enough: Callable[[D], bool] = lambda _: True) -> D | None:
        """A measurement of before; None where there is none, it cannot be read, or it is not `enough`."""
        path = self._store.path(key)
        try:
            found, made = kind.from_bytes(path.read_bytes(), str(path)), path.stat().st_mtime
        except (OSError, UserError):
            return None
        if not enough(found) or (self._anew and key not in self._now):
            return None
        if key not in self._now:
            self.since = min(made, self.since or made)
        return found

    def put(self, key: str, document: Document) -> None:
        """Keep a measurement."""
        self._store.put(key, document.to_bytes())
        self._now.add(key)
