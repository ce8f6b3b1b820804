"""Finding what no manifest, pointer or configuration names. Nothing is removed here.

An artefact folder is kept if a pointer leads to it, if the configuration asks for it, or if something that is kept was
made from it. Of a teacher that cannot be resolved now, everything is kept. What remains is garbage only if its manifest
says what it is and every file in it is one that unic-pipe writes.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from unic_pipe.pipeline.samples.dataset import read_manifest
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.storage.pointers import pointed, pointers
from unic_pipe.pipeline.workspace.ablation import ablation
from unic_pipe.pipeline.workspace.by_recipe import by_recipe
from unic_pipe.pipeline.workspace.documents import D, finished_student, stored_document, usable_document
from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import RATES, setting_of
from unic_pipe.pipeline.workspace.leftovers import MANIFEST, REMOVED, REMOVING, cut_off, leftovers, temporary_files
from unic_pipe.pipeline.workspace.results import RESULTS, read_record
from unic_pipe.pipeline.workspace.status import evaluation_path, extraction_needs
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.garbage import GarbageItem
from unic_pipe.schemas.presets import PRESETS
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.schemas.students import StudentDefinition, StudentManifest

KINDS = ("features", "students", "evaluations", "samples")
OLD_S = 30 * 86_400
"""Runs that ended longer ago are old."""

_TEMPORARY = r"\.tmp(/.*)?"
_FILES = {
    "features": r"(manifest|zarr|losses)\.json|ledger\.parquet|(view-\d{3,}|records|statistics|probes|damaged|calibration)/.+",
    "students": r"(manifest|latest)\.json|metrics\.parquet|(statistics|checkpoints|tensorboard|export|logged)/.+",
    "evaluations": (
        r"report\.(html|md)|(results|classes)\.parquet|results\.csv|results/[0-9a-f]{8}\.json|(probes|runs|damaged|logged)/.+"
    ),
    "samples": r"manifest\.json|segment-\d+(-[0-9a-f]{8})?\.parquet(\.blocks)?",
}


class Garbage:
    """One look at a working folder.
    Raises DamagedError: a document is not what was written, so that nobody knows what it needs; also while looking."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory, self.base = inventory, inventory.folder
        self.unknown: list[str] = []
        self._folders: dict[str, list[Store]] = {}
        self.places: dict[str, Store] = {kind: LocalStore(self.base / kind) for kind in KINDS}
        self.places |= {"features": inventory.workspace.features, "samples": inventory.workspace.samples}
        self._features = {f: _manifest(f, FeatureManifest) for f in self._artefacts("features")}
        self._students = {f: _manifest(f, StudentManifest) for f in self._artefacts("students")}

    def find(self) -> list[GarbageItem]:
        """Everything that could go, artefacts first."""
        kept = self._kept()
        items = [
            item
            for kind in KINDS
            for folder in self._artefacts(kind)
            if folder not in kept and (item := self._artefact(kind, folder)) is not None
        ]
        gone = {item.path for item in items}
        for kind in KINDS:
            for folder in self._artefacts(kind):
                if self._path(folder) not in gone:
                    items += self._inside(folder)
        return [*items, *self._leftovers(), *self._runs()]

    def _artefacts(self, kind: str) -> list[Store]:
        if kind not in self._folders:
            place = self.places[kind]
            self._folders[kind] = [place.child(n) for n in place.folders() if re.fullmatch(r".+-[0-9a-f]{8}", n)]
        return self._folders[kind]

    def _path(self, folder: Store, key: str = "") -> str:
        """How a folder, or something in it, is shown: from the working folder on where it is there."""
        text = folder.describe(key) if key else folder.location
        path = Path(text)
        return path.relative_to(self.base).as_posix() if path.is_relative_to(self.base) else text

    def _kept(self) -> set[Store]:
        """Folders that something names, and what they were made from."""
        kept = {
            found
            for kind in KINDS
            for name in pointers(self.places[kind])
            if (found := pointed(self.places[kind], name))
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
        digests = {digest for f, m in self._students.items() if f in kept and m for digest in m.definition.features}
        for folder in [f for f in self._artefacts("evaluations") if f in kept]:
            for path in (Path(folder.location) / RESULTS).glob("*.json"):
                record = read_record(path)
                digests |= {record.definition.features_train, record.definition.features_test} if record else set()
        kept |= {f for f, m in self._features.items() if m is not None and m.digest in digests}
        datasets = {m.definition.dataset for f, m in self._features.items() if f in kept and m is not None}
        students = [m.definition for f, m in self._students.items() if f in kept and m is not None]
        datasets |= {dataset for definition in students for dataset, _ in definition.datasets}
        return kept | {f for f in self._artefacts("samples") if _dataset_digest(f) in datasets}

    def _wanted(self) -> set[Store]:
        """Folders that the configuration asks for, with every folder of teachers and students that cannot be planned."""
        inventory, found = self.inventory, set[Store]()
        for name in inventory.config.teachers:
            try:
                found |= {inventory.own_features(need) for need in extraction_needs(inventory, (name,))}
            except UnicPipeError:
                found |= {f for f, m in self._features.items() if m is not None and m.encoder == name}
        for name in inventory.config.students:
            found |= {
                f for f, m in self._students.items() if m is not None and m.definition in self._definitions(name, m)
            }
        try:
            plans = evaluation_plans(inventory).plans
            found |= {inventory.own_features(need) for plan in plans for need, _ in plan.needs}
            evaluation = evaluation_path(inventory)
            found |= {LocalStore(evaluation)} if evaluation is not None else set()
        except UnicPipeError:
            found |= {*self._features, *self._artefacts("evaluations")}
        return found

    def _definitions(self, name: str, like: StudentManifest) -> list[StudentDefinition]:
        """What a configured student may be made from: itself, its variants, with live teachers, on as many rows as in a
        manifest that looks like it. One that cannot be planned now is taken to be that of the manifest."""
        if not like.name.startswith(name):
            return []
        found = []
        variants: dict[str, StudentConfig] = {}
        for all_of in (ablation, partial(by_recipe, recipes=tuple(PRESETS), rates=tuple(RATES))):
            with suppress(UnicPipeError):
                made = all_of(self.inventory.config, name)
                variants |= {variant: s for variant, s in made.items() if variant == setting_of(like.name)}
        for inventory in (self.inventory, self.inventory.with_students({**self.inventory.config.students, **variants})):
            for student in {name, *variants} & set(inventory.config.students):
                for each in (inventory, inventory.with_live_teachers() if inventory is self.inventory else inventory):
                    try:
                        definition = each.student_definition(student)
                    except UnicPipeError:
                        return [like.definition]
                    if definition is None:
                        return [like.definition]
                    found.append(_on_as_many_rows(definition, like.definition))
        return found

    def _weights(self, folder: Store) -> str | None:
        """Digest of a finished student's weights."""
        manifest = self._students[folder]
        student = finished_student(manifest.name, Path(folder.location)) if manifest is not None else None
        return student.export.weights if student is not None else None

    def _artefact(self, kind: str, folder: Store) -> GarbageItem | None:
        """A folder that nothing names, if it is what its name says and holds nothing else."""
        sizes = _sizes(folder)
        pattern = re.compile(f"{_FILES[kind]}|{_TEMPORARY}|{re.escape(REMOVING)}")
        left = cut_off(kind, self.places[kind], folder.name)
        why = left or self._identity(kind, folder)
        if left != REMOVED and (why is None or not all(pattern.fullmatch(key) for key in sizes)):
            self.unknown.append(self._path(folder))
            return None
        return self._item(folder, "", sizes, "temporary" if left else kind, str(why))

    def _identity(self, kind: str, folder: Store) -> str | None:
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
            done = finished_student(student.name, Path(folder.location)) is not None
            return "an earlier one of that name" if done else "not finished, and its settings are no longer configured"
        if kind == "samples":
            digest = _dataset_digest(folder)
            return "no pointer, features or student names it" if digest and short(digest) == digits else None
        records = [read_record(path) for path in (Path(folder.location) / RESULTS).glob("*.json")]
        return "an earlier evaluation" if records and all(records) else None

    def _inside(self, folder: Store) -> Iterator[GarbageItem]:
        """What may go of a folder that stays."""
        if "damaged" in folder.folders():
            yield self._item(folder, "damaged", folder.sizes("damaged"), "damaged", "set aside by verify")
        if isinstance(folder, LocalStore):
            for path, why in temporary_files(folder.root):
                yield self._file(path, "temporary", why)

    def _leftovers(self) -> Iterator[GarbageItem]:
        """What killed processes left beside the artefacts."""
        for path, why in leftovers(self.base, self.places.values()):
            yield self._file(path, "temporary", why)

    def _runs(self) -> Iterator[GarbageItem]:
        """Provenance of runs that ended long ago."""
        for path in sorted((self.base / "runs").glob("*-*.json")):
            run = usable_document(LocalStore(path.parent), path.name, RunDocument)
            if run is not None and time.time() - path.stat().st_mtime > OLD_S:
                yield self._file(path, "run", f"{run.stage}, ended over 30 days ago")

    def _item(self, folder: Store, key: str, sizes: Mapping[str, int], kind: str, why: str) -> GarbageItem:
        return GarbageItem(
            path=self._path(folder, key), kind=kind, bytes=sum(sizes.values()), files=len(sizes), why=why,  # type: ignore[arg-type]
        )  # fmt: skip

    def _file(self, path: Path, kind: str, why: str) -> GarbageItem:
        """A file, link or folder of the disk."""
        whole = path.is_dir() and not path.is_symlink()
        sizes = _sizes(LocalStore(path)) if whole else {"": path.lstat().st_size}
        return self._item(LocalStore(path), "", sizes, kind, why)


def _manifest(folder: Store, kind: type[D]) -> D | None:
    """An artefact's manifest; None where there is none, or it is somebody else's. One of ours that cannot be read is an
    error: what it was made from must not be taken for garbage."""
    try:
        return stored_document(folder, MANIFEST, kind)
    except UserError:
        if f'"{kind.KIND}/'.encode() not in folder.get(MANIFEST)[:200]:
            return None
        raise


def _on_as_many_rows(definition: StudentDefinition, like: StudentDefinition) -> StudentDefinition:
    """A definition with the numbers of blocks of another one."""
    blocks = dict(like.datasets)
    mixed = [part.model_copy(update={"blocks": blocks.get(part.dataset, part.blocks)}) for part in definition.mixed]
    return definition.model_copy(update={"blocks": like.blocks, "mixed": tuple(mixed)})


def _dataset_digest(folder: Store) -> str | None:
    try:
        return read_manifest(folder).digest
    except (UnicPipeError, OSError):
        return None


def _sizes(folder: Store) -> dict[str, int]:
    """Bytes of everything below a folder, temporary files and links (which are not followed) among them."""
    if not isinstance(folder, LocalStore):
        return folder.sizes()
    found: list[Path] = []
    for path, folders, files in os.walk(folder.root):
        found += [Path(path, name) for name in files]
        found += [Path(path, name) for name in folders if Path(path, name).is_symlink()]
    return {f.relative_to(folder.root).as_posix(): f.lstat().st_size for f in found}
