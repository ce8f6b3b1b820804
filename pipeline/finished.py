"""Documents in folders, and what they say: a finished student, the newest checkpoint. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.storage import LocalStore, Store, get_or_none
from schemas.base import Document
from schemas.errors import UserError
from schemas.students import CheckpointEntry, ExportManifest, StudentManifest

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class FinishedStudent:
    """A student folder with an export that matches its manifest."""

    name: str
    folder: Path
    manifest: StudentManifest
    export: ExportManifest


def finished_student(name: str, folder: Path) -> FinishedStudent | None:
    """The student in a folder if it is finished: the export is that of the manifest, and its files are there.

    Only `verify` hashes them.
    """
    manifest = read_document(folder / "manifest.json", StudentManifest)
    export = read_document(folder / "export" / "manifest.json", ExportManifest)
    if manifest is None or export is None or export.student != manifest.digest:
        return None
    if not all((folder / "export" / name).is_file() for name in ("model.safetensors", "config.json")):
        return None
    return FinishedStudent(name, folder, manifest, export)


def checkpoint_step(folder: Path) -> int | None:
    """Step of the newest durable checkpoint, or None if there is none."""
    entry = read_document(folder / "latest.json", CheckpointEntry)
    return entry.step if entry is not None and (folder / entry.file).is_file() else None


def read_document(path: Path, kind: type[D]) -> D | None:
    """The document in a file; None when there is none. Damage is for `verify` to report, and counts as none."""
    return stored_document(LocalStore(path.parent), path.name, kind)


def stored_document(store: Store, key: str, kind: type[D]) -> D | None:
    """The document under a key; None when there is none or it is damaged."""
    raw = get_or_none(store, key)
    try:
        return None if raw is None else kind.from_bytes(raw, store.describe(key))
    except UserError:
        return None
