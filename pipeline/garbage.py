"""Finding what no manifest, pointer or configuration names. Nothing is removed here.

An artefact folder is kept if a pointer leads to it, if the configuration asks for it, or if something that is kept was
made from it. Of a teacher that cannot be resolved now, everything is kept. What remains is garbage only if its manifest
says what it is and every file in it is one that unic-pipe writes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.ablation import ablation
from pipeline.evaluations import RESULTS, read_record
from pipeline.finished import finished_student, read_document
from pipeline.inventory import Inventory
from pipeline.planning import evaluation_path, extraction_needs
from pipeline.pointers import resolve_pointer
from pipeline.probing import probe_plans
from pipeline.samples.dataset import read_manifest
from pipeline.storage import abandoned
from schemas.base import short
from schemas.errors import UnicPipeError
from schemas.features import FeatureManifest
from schemas.garbage import GarbageItem
from schemas.runs import RunDocument
from schemas.students import StudentDefinition, StudentManifest

KINDS = ("features", "students", "evaluations", "samples")
TRASH = ".trash-"
"""Begins the name of a folder that is being removed."""
OLD_S = 30 * 86_400
"""Runs that ended longer ago are old."""

_TEMPORARY = r"\.tmp(/.*)?"
_FILES = {
    "features": r"(manifest|zarr)\.json|ledger\.parquet|(view-\d{3,}|records|statistics|probes|damaged|calibration)/.+",
    "students": r"(manifest|latest)\.json|metrics\.parquet|(statistics|checkpoints|tensorboard|export)/.+",
    "evaluations": r"report\.html|results\.parquet|results/[0-9a-f]{8}\.json",
    "samples": r"manifest\.json|segment-\d+\.parquet",
}


class Garbage:
    """One look at a working folder."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory, self.base = inventory, inventory.folder
        self.unknown: list[str] = []
        self._features = {f: read_document(f / "manifest.json", FeatureManifest) for f in self._artefacts("features")}
        self._students = {f: read_document(f / "manifest.json", StudentManifest) for f in self._artefacts("students")}

    def find(self) -> list[GarbageItem]:
        """Everything that could go, artefacts first."""
        kept = self._kept()
        items = [
            item
            for kind in KINDS
            for folder in self._artefacts(kind)
            if folder not in kept and (item := self._artefact(kind, folder)) is not None
        ]
        gone = {self.base / item.path for item in items}
        items += [item for kind in KINDS for f in self._artefacts(kind) if f not in gone for item in self._inside(f)]
        return [*items, *self._leftovers(), *self._runs()]

    def _artefacts(self, kind: str) -> list[Path]:
        top = self.base / kind
        names = sorted(top.iterdir()) if top.is_dir() else []
        return [f for f in names if f.is_dir() and not f.is_symlink() and re.fullmatch(r".+-[0-9a-f]{8}", f.name)]

    def _kept(self) -> set[Path]:
        """Folders that something names, and what they were made from."""
        kept = {
            found
            for kind in KINDS
            for name in self._pointers(kind)
            if (found := resolve_pointer(self.base / kind, name))
        }
        kept |= self._wanted()
        kept |= {f for f, m in self._students.items() if f in kept and m is not None}
        parents = {m.definition.parent for f, m in self._students.items() if f in kept and m is not None}
        while True:
            more = {f for f in self._students if f not in kept and self._weights(f) in parents - {None}}
            if not more:
                break
            kept |= more
            parents |= {m.definition.parent for f in more if (m := self._students[f]) is not None}
        digests = {t.features for f, m in self._students.items() if f in kept and m for t in m.definition.teachers}
        for folder in [f for f in self._artefacts("evaluations") if f in kept]:
            for path in (folder / RESULTS).glob("*.json"):
                record = read_record(path)
                digests |= {record.definition.features_train, record.definition.features_test} if record else set()
        kept |= {f for f, m in self._features.items() if m is not None and m.digest in digests}
        datasets = {m.definition.dataset for f, m in self._features.items() if f in kept and m is not None}
        datasets |= {m.definition.dataset for f, m in self._students.items() if f in kept and m is not None}
        return kept | {f for f in self._artefacts("samples") if _dataset_digest(f) in datasets}

    def _pointers(self, kind: str) -> list[str]:
        top = self.base / kind
        return [f.name for f in top.iterdir() if f.is_symlink()] if top.is_dir() else []

    def _wanted(self) -> set[Path]:
        """Folders that the configuration asks for, with every folder of teachers and students that cannot be planned."""
        inventory, found = self.inventory, set[Path]()
        for name in inventory.config.teachers:
            try:
                found |= {need.folder(self.base) for need in extraction_needs(inventory, (name,))}
            except UnicPipeError:
                found |= {f for f, m in self._features.items() if m is not None and m.encoder == name}
        for name in inventory.config.students:
            found |= {
                f for f, m in self._students.items() if m is not None and m.definition in self._definitions(name, m)
            }
        try:
            found |= {need.folder(self.base) for p in probe_plans(inventory)[0] for need, _ in (p.train, p.test)}
            evaluation = evaluation_path(inventory)
            found |= {evaluation} if evaluation is not None else set()
        except UnicPipeError:
            found |= {*self._features, *self._artefacts("evaluations")}
        return found

    def _definitions(self, name: str, like: StudentManifest) -> list[StudentDefinition]:
        """What a configured student may be made from: itself, its variants, with live teachers, on as many rows as in a
        manifest that looks like it. One that cannot be planned now is taken to be that of the manifest."""
        if not like.name.startswith(name):
            return []
        found = []
        try:
            variants = ablation(self.inventory.config, name)
        except UnicPipeError:
            variants = {}
        for inventory in (self.inventory, self.inventory.with_students({**self.inventory.config.students, **variants})):
            for student in {name, *variants} & set(inventory.config.students):
                for each in (inventory, inventory.with_live_teachers() if inventory is self.inventory else inventory):
                    try:
                        definition = each.student_definition(student)
                    except UnicPipeError:
                        return [like.definition]
                    if definition is None:
                        return [like.definition]
                    found.append(definition.model_copy(update={"blocks": like.definition.blocks}))
        return found

    def _weights(self, folder: Path) -> str | None:
        """Digest of a finished student's weights."""
        manifest = self._students[folder]
        student = finished_student(manifest.name, folder) if manifest is not None else None
        return student.export.weights if student is not None else None

    def _artefact(self, kind: str, folder: Path) -> GarbageItem | None:
        """A folder that nothing names, if it is what its name says and holds nothing else."""
        why = self._identity(kind, folder)
        pattern = re.compile(f"{_FILES[kind]}|{_TEMPORARY}")
        if why is None or not all(pattern.fullmatch(f.relative_to(folder).as_posix()) for f in _files(folder)):
            self.unknown.append(folder.relative_to(self.base).as_posix())
            return None
        return self._item(folder, kind, why)

    def _identity(self, kind: str, folder: Path) -> str | None:
        """Why the folder is garbage; None if it is not what its name says."""
        digits = folder.name[-8:]
        if kind == "features":
            features = self._features[folder]
            return (
                "no pointer, configuration or student names it"
                if features and short(features.digest) == digits
                else None
            )
        if kind == "students":
            student = self._students[folder]
            if student is None or short(student.digest) != digits:
                return None
            done = finished_student(student.name, folder) is not None
            return "an earlier one of that name" if done else "not finished, and its settings are no longer configured"
        if kind == "samples":
            digest = _dataset_digest(folder)
            return "no pointer, features or student names it" if digest and short(digest) == digits else None
        records = [read_record(path) for path in (folder / RESULTS).glob("*.json")]
        return "an earlier evaluation" if records and all(records) else None

    def _inside(self, folder: Path) -> Iterator[GarbageItem]:
        """What may go of a folder that stays."""
        if (folder / "damaged").is_dir() and not (folder / "damaged").is_symlink():
            yield self._item(folder / "damaged", "damaged", "set aside by verify")
        yield from self._stale(folder / ".tmp", lambda entry: entry.name)

    def _leftovers(self) -> Iterator[GarbageItem]:
        """What killed processes left beside the artefacts: temporary files, half-made pointers, half-removed folders."""
        yield from self._stale(self.base / "runs" / ".tmp", lambda entry: entry.name)
        for kind in KINDS:
            top = self.base / kind
            for entry in sorted(top.glob(".*")) if top.is_dir() else []:
                if entry.name.startswith(TRASH) and entry.is_dir() and not entry.is_symlink():
                    yield self._item(entry, "temporary", "its removal was cut off")
                owner = re.fullmatch(r"\..+?\.([^.@]+[^@]*@\d+-\d+)", entry.name)
                if owner is not None and entry.is_symlink() and abandoned(entry, owner[1]):
                    yield self._item(entry, "temporary", "left by a killed process")

    def _stale(self, folder: Path, owner: Callable[[Path], str]) -> Iterator[GarbageItem]:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            known = re.fullmatch(r"[^@]+@\d+-\d+", entry.name) and entry.is_file() and not entry.is_symlink()
            if known and abandoned(entry, owner(entry)):
                yield self._item(entry, "temporary", "left by a killed process")

    def _runs(self) -> Iterator[GarbageItem]:
        """Provenance of runs that ended long ago."""
        for path in sorted((self.base / "runs").glob("*.json")):
            run = read_document(path, RunDocument)
            if run is not None and time.time() - path.stat().st_mtime > OLD_S:
                yield self._item(path, "run", f"{run.stage}, ended over 30 days ago")

    def _item(self, path: Path, kind: str, why: str) -> GarbageItem:
        files = list(_files(path)) if path.is_dir() and not path.is_symlink() else [path]
        size = sum(f.lstat().st_size for f in files)
        relative = path.relative_to(self.base).as_posix()
        return GarbageItem(path=relative, kind=kind, bytes=size, files=len(files), why=why)  # type: ignore[arg-type]


def _dataset_digest(folder: Path) -> str | None:
    try:
        return read_manifest(folder).digest
    except (UnicPipeError, OSError):
        return None


def _files(folder: Path) -> Iterator[Path]:
    """Files and links below a folder; links are not followed."""
    for path, folders, files in os.walk(folder):
        yield from (Path(path, name) for name in files)
        yield from (Path(path, name) for name in folders if Path(path, name).is_symlink())
