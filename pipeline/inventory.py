"""What is on disk and what the configuration asks for, read once and kept for the length of a command. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.cache.records import FeatureFolder
from pipeline.configuration import Workspace
from pipeline.encoders import ResolvedEncoder, resolve_encoder
from pipeline.features import FeatureNeed, center_need, training_need
from pipeline.pointers import resolve_pointer
from pipeline.samples import Dataset, data_roots, dataset_state, find_dataset, open_dataset
from pipeline.storage import LocalStore
from pipeline.students import student_definition, student_teachers
from schemas.base import Document, digest_of
from schemas.config import EncoderConfig, StudentConfig
from schemas.errors import UnicPipeError, UserError, did_you_mean
from schemas.features import FeatureManifest
from schemas.status import State
from schemas.students import CheckpointEntry, ExportManifest, StudentDefinition, StudentManifest

D = TypeVar("D", bound=Document)

PILOT = "-pilot"
"""Appended to the name of a student that was trained on a part of the rows (`--rows`)."""


@dataclass(frozen=True)
class DatasetView:
    """A dataset as found: its index, and whether it still matches its source."""

    name: str
    dataset: Dataset | None
    state: State
    reason: str


@dataclass(frozen=True)
class FinishedStudent:
    """A student folder with an export that matches its manifest."""

    name: str
    folder: Path
    manifest: StudentManifest
    export: ExportManifest


class Inventory:
    """Lazily read facts about a workspace. `rows` is the `--rows` limit: `1%` or a number."""

    def __init__(self, workspace: Workspace, rows: str | None = None) -> None:
        self.workspace = workspace
        self.config = workspace.config
        self.folder = workspace.folder
        self.rows = rows
        self._datasets: dict[str, DatasetView] = {}
        self._encoders: dict[str, ResolvedEncoder | UnicPipeError] = {}

    def dataset(self, name: str) -> DatasetView:
        """The dataset of that name as it is on disk."""
        if name not in self._datasets:
            config = self.config.samples.datasets[name]
            roots = data_roots(self.folder, config, self.config.samples)
            folder = find_dataset(self.folder, name)
            state, reason = dataset_state(folder, roots, config, self.config.samples.block_rows)
            dataset = None
            if folder is not None and state != "missing":
                try:
                    dataset = open_dataset(folder, roots)
                except UserError as error:
                    state, reason = "stale", error.message
            self._datasets[name] = DatasetView(name, dataset, state, reason)
        return self._datasets[name]

    def refresh(self, name: str, dataset: Dataset) -> None:
        """Take note that a dataset was indexed."""
        self._datasets[name] = DatasetView(name, dataset, "fresh", "")

    def encoder(self, name: str, config: EncoderConfig) -> ResolvedEncoder:
        """Resolve an encoder once.

        Raises:
            UserError: its weights are missing or not what they should be.
        """
        key = f"{name}:{digest_of(config)}"
        if key not in self._encoders:
            try:
                self._encoders[key] = resolve_encoder(name, config, self.workspace.weights_dir, self.folder)
            except UnicPipeError as error:
                self._encoders[key] = error
        found = self._encoders[key]
        if isinstance(found, UnicPipeError):
            raise found
        return found

    def teacher(self, name: str) -> ResolvedEncoder:
        """A configured teacher.

        Raises:
            UserError: no such teacher, or no weights.
        """
        if name not in self.config.teachers:
            raise UserError(
                f"No teacher is named {name!r}{did_you_mean(name, list(self.config.teachers))}",
                f"Name it under teachers: in {self.workspace.file.name}, or choose one (unic-pipe teachers).",
            )
        return self.encoder(name, self.config.teachers[name])

    def block_limit(self, dataset: Dataset) -> int:
        """Number of blocks to work on: all, or those that `--rows` asks for."""
        if self.rows is None:
            return dataset.blocks
        return min(dataset.blocks, max(1, math.ceil(rows_wanted(self.rows, dataset) / dataset.block_rows)))

    def training_needs(self, teachers: tuple[str, ...], dataset_name: str) -> list[FeatureNeed]:
        """The teachers' features of a training set; nothing while the dataset is not indexed."""
        dataset = self.dataset(dataset_name).dataset
        if dataset is None:
            return []
        return [training_need(self.config, dataset.manifest, name, self.teacher(name).definition) for name in teachers]

    def validation_needs(self, teachers: tuple[str, ...]) -> list[FeatureNeed]:
        """The teachers' features for the validation loss."""
        name = self.config.distill.validation
        dataset = self.dataset(name).dataset if name is not None else None
        if dataset is None:
            return []
        return [
            center_need(self.config, dataset.manifest, t, self.teacher(t).definition, ("cls", "patch"))
            for t in teachers
        ]

    def probe_need(self, dataset: Dataset, encoder: ResolvedEncoder) -> FeatureNeed:
        """An encoder's features for probes on a dataset."""
        return center_need(self.config, dataset.manifest, encoder.name, encoder.definition, ("cls",))

    def coverage(self, need: FeatureNeed, blocks: int) -> tuple[int, int]:
        """Units of a need that are recorded, and units in all, over blocks 0 to `blocks` - 1."""
        planes = need.planes()
        dataset = self.dataset(need.dataset).dataset
        if dataset is None or self.manifest(need) is None:
            return 0, blocks * len(planes)
        folder = FeatureFolder(LocalStore(need.folder(self.folder)))
        rows = [dataset.block_digest(block) for block in range(blocks)]
        done = sum(int(np.count_nonzero(folder.covered(view, token, rows))) for view, token in planes)
        return done, blocks * len(planes)

    def mixed_batches(self, need: FeatureNeed) -> str:
        """A remark when units were made with another batch size than the definition's (`extract --batch`)."""
        if self.manifest(need) is None:
            return ""
        folder = FeatureFolder(LocalStore(need.folder(self.folder)))
        found = {batch for view, token in need.planes() for batch in folder.batches(view, token)}
        found.add(need.definition.compute.batch)
        return f"mixed: batches of {', '.join(map(str, sorted(found)))}" if len(found) > 1 else ""

    def manifest(self, need: FeatureNeed) -> FeatureManifest | None:
        """The manifest of a need's folder, if it exists and is that of this definition."""
        manifest = read_document(need.folder(self.folder) / "manifest.json", FeatureManifest)
        return manifest if manifest is not None and manifest.digest == need.digest else None

    def pointed(self, kind: str, name: str, document: type[D], expected: Path) -> D | None:
        """The manifest that a pointer leads to, when that is another folder than the expected one."""
        folder = resolve_pointer(self.folder / kind, name)
        if folder is None or folder.name == expected.name:
            return None
        return read_document(folder / "manifest.json", document)

    def unfinished_student(self, label: str) -> StudentManifest | None:
        """A training under this name that was begun and not finished; the one with the newest checkpoint."""
        found: list[tuple[float, StudentManifest]] = []
        for folder in (self.folder / "students").glob(f"{label}-????????"):
            manifest = read_document(folder / "manifest.json", StudentManifest)
            latest = folder / "latest.json"
            if manifest is not None and manifest.name == label and finished_student(label, folder) is None:
                found.append((latest.stat().st_mtime if latest.exists() else 0.0, manifest))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def with_students(self, students: Mapping[str, StudentConfig]) -> Inventory:
        """The same working folder with other students configured."""
        config = self.config.model_copy(update={"students": dict(students)})
        return Inventory(replace(self.workspace, config=config), self.rows)

    def student_name(self, name: str) -> str:
        """The name under which a student is kept: pilots have their own."""
        return name + PILOT if self.rows is not None else name

    def student_definition(self, name: str) -> StudentDefinition | None:
        """What the configured student would be made from; None while its dataset is not indexed."""
        student = self.config.students[name]
        dataset = self.dataset(student.dataset).dataset
        if dataset is None:
            return None
        teachers = student_teachers(self.config, name)
        needs = self.training_needs(teachers, student.dataset)
        return student_definition(
            self.config,
            name,
            dataset.manifest,
            {need.encoder: need.definition for need in needs},
            self.block_limit(dataset),
            self.config.views.count,
        )

    @cached_property
    def finished_students(self) -> Mapping[str, FinishedStudent]:
        """Every student that a pointer in `students/` names and that has been exported, by name."""
        found: dict[str, FinishedStudent] = {}
        base = self.folder / "students"
        for entry in sorted(base.iterdir()) if base.is_dir() else []:
            if not entry.is_symlink():
                continue
            folder = resolve_pointer(base, entry.name)
            student = finished_student(entry.name, folder) if folder is not None else None
            if student is not None:
                found[entry.name] = student
        return found

    def student_encoder(self, student: FinishedStudent) -> ResolvedEncoder:
        """An exported student as an encoder."""
        export = (student.folder / "export").relative_to(self.folder).as_posix()
        return self.encoder(student.name, EncoderConfig(encoder=f"checkpoint:{export}"))

    def baseline(self, name: str, config: StudentConfig) -> ResolvedEncoder:
        """A student's architecture at random initialisation, as an encoder."""
        return self.encoder(f"{name}-random", baseline_config(config))


def baseline_config(student: StudentConfig) -> EncoderConfig:
    """The encoder configuration of a student's architecture with random weights from the student's seed."""
    return EncoderConfig(
        encoder=f"timm:{student.architecture}",
        weights=f"random:{student.seed}",
        model_args=student.model_args,
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
    )


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


def rows_wanted(rows: str, dataset: Dataset) -> int:
    """The number of rows that `1%` or `5000` means.

    Raises:
        UserError: neither a percentage nor a number.
    """
    number, percentage = parse_rows(rows)
    return math.ceil(number / 100 * dataset.manifest.rows if percentage else number)


def parse_rows(rows: str) -> tuple[float, bool]:
    """The number in `1%` or `5000`, and whether it is a percentage.

    Raises:
        UserError: neither a percentage between 0 and 100 nor a positive number.
    """
    text = rows.strip().replace(",", "")
    percentage = text.endswith("%")
    try:
        number = float(text[:-1]) if percentage else int(text)
    except ValueError:
        number = 0
    if not 0 < number <= (100 if percentage else math.inf):
        raise UserError(f"--rows {rows}: expected a percentage or a number of rows, for instance 1% or 5000.")
    return number, percentage


def read_document(path: Path, kind: type[D]) -> D | None:
    """The document in a file; None when there is none. Damage is for `verify` to report, and counts as none."""
    try:
        return kind.from_bytes(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None
