"""Documents in folders, and what they say: a finished student, the newest checkpoint. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from unic_pipe.pipeline.cache.tables import read_table
from unic_pipe.pipeline.storage import LocalStore, Store, get_or_none
from unic_pipe.schemas.base import Document
from unic_pipe.schemas.config import DistillConfig, StudentConfig
from unic_pipe.schemas.errors import DamagedError, StageError
from unic_pipe.schemas.students import CheckpointEntry, ExportManifest, StudentManifest

METRICS = "metrics.parquet"
"""What a training measured, step by step, in the student's folder."""

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

    Only `verify` hashes them. Raises DamagedError: a manifest is not what was written.
    """
    manifest = read_document(folder / "manifest.json", StudentManifest)
    export = read_document(folder / "export" / "manifest.json", ExportManifest)
    if manifest is None or export is None or export.student != manifest.digest:
        return None
    if not all((folder / "export" / name).is_file() for name in ("model.safetensors", "config.json")):
        return None
    return FinishedStudent(name, folder, manifest, export)


def checkpoint_step(folder: Path) -> int | None:
    """Step of the newest durable checkpoint, or None if there is none. Raises DamagedError."""
    entry = read_document(folder / "latest.json", CheckpointEntry)
    return entry.step if entry is not None and (folder / entry.file).is_file() else None


def last_checkpoint(folder: Path) -> CheckpointEntry | None:
    """What `latest.json` of a student's folder says; None where there is none that can be read."""
    return usable_document(LocalStore(folder), "latest.json", CheckpointEntry)


def step_threads(folder: Path, config: StudentConfig, settings: DistillConfig) -> int:
    """CPU threads of a training's steps: as its checkpoints recorded, or as configured while there is none."""
    entry = last_checkpoint(folder)
    return (entry.threads if entry is not None else settings.threads) or config.threads


def last_entry(student: FinishedStudent) -> CheckpointEntry:
    """What `latest.json` says about the last checkpoint, which holds the ladder.

    Raises:
        DamagedError: it is not what was written.
        StageError: it is gone.
    """
    entry = read_document(student.folder / "latest.json", CheckpointEntry)
    if entry is None:
        raise lost_ladder(student, student.folder / "latest.json")
    return entry


def lost_ladder(student: FinishedStudent, path: Path) -> StageError:
    """The error for a finished student whose last checkpoint cannot be read."""
    return StageError(
        f"{path}: the last checkpoint of student {student.name}, which holds its ladder, is gone or damaged.",
        "Restore it (unic-pipe verify). The encoder alone is in its export/ folder.",
    )


def student_metrics(folder: Path) -> pa.Table | None:
    """The table `metrics.parquet` of a student's folder; None when there is none. Raises DamagedError."""
    path, manifest = folder / METRICS, folder / "manifest.json"
    if not path.is_file():
        return None
    hint = f"Restore it; or go on without its curves: mv {path} {path}.old"
    sealed = manifest.is_file() and not StudentManifest.unsealed(head_of(manifest))
    return read_table(path.read_bytes(), str(path), hint, sealed)


def head_of(path: Path) -> bytes:
    """The first bytes of a file: of a document, enough to tell its version."""
    with path.open("rb") as handle:
        return handle.read(100)


def read_document(path: Path, kind: type[D]) -> D | None:
    """The document in a file; None when there is none. Raises DamagedError."""
    return stored_document(LocalStore(path.parent), path.name, kind)


def stored_document(store: Store, key: str, kind: type[D]) -> D | None:
    """The document under a key; None when there is none.

    Raises:
        DamagedError: it is not what was written.
        UserError: written by a newer unic-pipe.
    """
    raw = get_or_none(store, key)
    return None if raw is None else kind.from_bytes(raw, store.describe(key))


def usable_document(store: Store, key: str, kind: type[D]) -> D | None:
    """The document under a key; None when there is none, or it is damaged: for what the next run makes again."""
    try:
        return stored_document(store, key, kind)
    except DamagedError:
        return None
