"""What is on disk and what the configuration asks for, read once and kept for the length of a command. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.needs import FeatureNeed, center_need, training_need
from unic_pipe.pipeline.encoders import ResolvedEncoder, resolve_encoder
from unic_pipe.pipeline.encoders.registry import is_known
from unic_pipe.pipeline.samples import Dataset, data_roots, dataset_state, find_dataset, open_dataset
from unic_pipe.pipeline.samples.dataset import DatasetView
from unic_pipe.pipeline.storage import LocalStore, Store, sha256_of_file
from unic_pipe.pipeline.storage.pointers import pointed, resolve_pointer
from unic_pipe.pipeline.workspace.configuration import Workspace, rows_wanted
from unic_pipe.pipeline.workspace.coverage import Recorded, recorded
from unic_pipe.pipeline.workspace.documents import (
    D,
    FinishedStudent,
    checkpoint_step,
    finished_student,
    read_document,
    usable_document,
)
from unic_pipe.pipeline.workspace.labels import LIVE, PILOT, in_order, label_of
from unic_pipe.pipeline.workspace.names import BASELINE
from unic_pipe.pipeline.workspace.starts import Origin, source_of
from unic_pipe.pipeline.workspace.students import baseline_config, student_definition, student_folder, student_teachers
from unic_pipe.schemas.base import digest_of, require_name, short
from unic_pipe.schemas.chains import named_student
from unic_pipe.schemas.config import EncoderConfig, StudentConfig, TokenType
from unic_pipe.schemas.errors import NotFinishedError, StageError, UnicPipeError, UserError, did_you_mean
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.starts import PRETRAINED
from unic_pipe.schemas.students import StudentDefinition, StudentManifest


class Inventory:
    """Lazily read facts about a workspace.

    `rows` is the `--rows` limit: `1%` or a number. `live`: students are trained with their teachers in the loop.
    """

    def __init__(self, workspace: Workspace, rows: str | None = None, live: bool = False) -> None:
        self.workspace = workspace
        self.config = workspace.config
        self.folder = workspace.folder
        self.rows = rows
        self.live = live
        self.refused: dict[str, UserError] = {}
        """Datasets that could not be indexed."""
        self._datasets: dict[str, DatasetView] = {}
        self._encoders: dict[str, ResolvedEncoder | UnicPipeError] = {}

    def dataset(self, name: str) -> DatasetView:
        """The dataset of that name as it is on disk."""
        if name not in self._datasets:
            config = self.config.samples.datasets[name]
            roots = data_roots(self.folder, config, self.config.samples, self.config.storage.options)
            index = find_dataset(self.workspace.samples, name)
            state, reason = dataset_state(
                index, roots, config, self.config.samples.block_rows, self.config.samples.decoding
            )
            dataset = None
            if index is not None and state != "missing":
                try:
                    found = open_dataset(index, roots)
                    found.check()
                    dataset = found
                except UnicPipeError as error:
                    state, reason = "stale", error.message
            self._datasets[name] = DatasetView(name, dataset, state, reason)
        return self._datasets[name]

    def refresh(self, name: str, dataset: Dataset) -> None:
        """Take note that a dataset was indexed."""
        self._datasets[name] = DatasetView(name, dataset, "fresh", "")

    def refuse(self, name: str, error: UserError) -> None:
        """Take note that a dataset cannot be used, and why; what it was before does not count."""
        self._datasets[name] = DatasetView(name, None, "stale", error.message)
        self.refused[name] = error

    def encoder(self, name: str, config: EncoderConfig, like: StudentConfig | None = None) -> ResolvedEncoder:
        """Resolve an encoder once. `like`: the student whose architecture a file has that does not say its own.

        Raises:
            UserError: its weights are missing or not what they should be, or its name is no name.
        """
        require_name(name, "Encoder")
        key = f"{name}:{digest_of(config)}:{like and (like.architecture, like.model_args)}"
        if key not in self._encoders:
            try:
                self._encoders[key] = resolve_encoder(name, config, self.workspace.weights_dir, self.folder, like)
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
            NotFinishedError: the teacher is a student that is not finished.
            StageError: it is a student, and not what its training exported.
        """
        if name not in self.config.teachers:
            raise UserError(
                f"No teacher is named {name!r}{did_you_mean(name, list(self.config.teachers))}",
                f"Name it under teachers: in {self.workspace.file.name}, or choose one (unic-pipe teachers).",
            )
        config = self.config.teachers[name]
        student = named_student(config.encoder)
        if student is not None:
            return self.student_encoder(self.finished(student, f"Teacher {name}"), name, config)
        return self.encoder(name, config)

    def block_limit(self, dataset: Dataset) -> int:
        """Number of blocks to work on: all, or those that `--rows` asks for, but enough for a batch of its students."""
        if self.rows is None:
            return dataset.blocks
        name = dataset.manifest.name
        batches = [s.optimizer.batch for s in self.config.students.values() if name in s.datasets]
        wanted = max(rows_wanted(self.rows, dataset), *batches, 1)
        return min(dataset.blocks, math.ceil(wanted / dataset.block_rows))

    def rows_of(self, dataset: Dataset) -> int:
        """Number of rows of the blocks to work on."""
        return sum(dataset.block_range(block)[1] for block in range(self.block_limit(dataset)))

    def training_needs(self, teachers: tuple[str, ...], dataset_name: str) -> list[FeatureNeed]:
        """Features of a training set, of those teachers that teach on it; nothing while the dataset is not indexed."""
        dataset = self.dataset(dataset_name).dataset
        if dataset is None:
            return []
        own = [name for name in teachers if self.config.teaches(name, dataset_name)]
        return [training_need(self.config, dataset.manifest, name, self.teacher(name).definition) for name in own]

    def validation_needs(self, teachers: tuple[str, ...]) -> list[FeatureNeed]:
        """The teachers' features for the validation loss."""
        datasets = [self.dataset(name).dataset for name in self.config.distill.validations]
        return [
            center_need(self.config, dataset.manifest, t, self.teacher(t).definition, ("cls", "patch"))
            for dataset in datasets
            if dataset is not None
            for t in teachers
            if self.config.teaches(t, dataset.manifest.name)
        ]

    def probe_need(self, dataset: Dataset, encoder: ResolvedEncoder) -> FeatureNeed:
        """An encoder's features for probes on a dataset."""
        return center_need(self.config, dataset.manifest, encoder.name, encoder.definition, ("cls",))

    def coverage(self, need: FeatureNeed, blocks: int) -> tuple[int, int]:
        """Units of a need that are recorded, and units in all, over blocks 0 to `blocks` - 1."""
        planes = self.plane_coverage(need, blocks)
        return sum(int(np.count_nonzero(covered)) for covered in planes.values()), blocks * len(planes)

    def missing_units(self, need: FeatureNeed, blocks: int) -> tuple[dict[TokenType, int], int]:
        """Units of a need that are not recorded, by token type, and (view, block) pairs of which something is missing."""
        planes = self.plane_coverage(need, blocks)
        counts = {
            token: sum(blocks - int(c.sum()) for (_, t), c in planes.items() if t == token) for token in need.views
        }
        lacking = [
            ~np.logical_and.reduce([c for (v, _), c in planes.items() if v == view]) for view in {v for v, _ in planes}
        ]
        return counts, sum(int(np.count_nonzero(blocks_of_view)) for blocks_of_view in lacking)

    def plane_coverage(self, need: FeatureNeed, blocks: int) -> dict[tuple[int, TokenType], NDArray[np.bool_]]:
        """Which of blocks 0 to `blocks` - 1 are recorded, bool (blocks,), by view and token type."""
        return self.recorded(need, blocks).covered

    def recorded(self, need: FeatureNeed, blocks: int) -> Recorded:
        """What the records of a need say of blocks 0 to `blocks` - 1."""
        return self._recorded(need, blocks, self.feature_folder(need))

    def own_features(self, need: FeatureNeed) -> Store:
        """Where this working folder keeps a need's features."""
        return self.workspace.features.child(need.folder_name)

    def feature_folder(self, need: FeatureNeed) -> Store:
        """Where a need's features are read: the working folder's own, or a complete one in `feature_roots` if that is
        not complete. Folders are told by the digest in their manifest."""
        own = self.own_features(need)
        dataset = self.dataset(need.dataset).dataset
        if dataset is None or not self.workspace.feature_roots:
            return own
        blocks = self.block_limit(dataset)
        if not self._complete(need, blocks, own):
            for root in self.workspace.feature_roots:
                for name in root.folders():
                    if name.endswith(f"-{short(need.digest)}") and self._complete(need, blocks, root.child(name)):
                        return root.child(name)
        return own

    def borrowed(self, need: FeatureNeed) -> str | None:
        """The folder of somebody else from which a need is read."""
        folder = self.feature_folder(need)
        return folder.location if folder != self.own_features(need) else None

    def _complete(self, need: FeatureNeed, blocks: int, folder: Store) -> bool:
        return all(covered.all() for covered in self._recorded(need, blocks, folder).covered.values())

    def _recorded(self, need: FeatureNeed, blocks: int, store: Store) -> Recorded:
        return recorded(self.dataset(need.dataset).dataset, need, blocks, store)

    def manifest(self, need: FeatureNeed) -> FeatureManifest | None:
        """The manifest of a need's folder, if it exists and is that of this definition."""
        manifest = usable_document(self.feature_folder(need), "manifest.json", FeatureManifest)
        return manifest if manifest is not None and manifest.digest == need.digest else None

    def pointed(self, kind: str, name: str, document: type[D], expected: str) -> D | None:
        """The manifest that a pointer leads to, when that is another folder than the expected one."""
        places = {"features": self.workspace.features, "samples": self.workspace.samples}
        folder = pointed(places.get(kind, LocalStore(self.folder / kind)), name)
        if folder is None or folder.name == expected:
            return None
        return usable_document(folder, "manifest.json", document)

    def unfinished_student(self, label: str) -> StudentManifest | None:
        """A training under this name that was begun and not finished; the one with the newest checkpoint. One that has
        not done a step yet does not count: nothing is lost with it."""
        found = [
            ((folder / "latest.json").stat().st_mtime, manifest)
            for folder, manifest in self._trainings(label)
            if checkpoint_step(folder) and finished_student(label, folder) is None
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _trainings(self, label: str) -> list[tuple[Path, StudentManifest]]:
        """Every training that was ever begun under a name, with its folder. Raises DamagedError."""
        folders = sorted((self.folder / "students").glob(f"{label}-????????"))
        found = [(folder, read_document(folder / "manifest.json", StudentManifest)) for folder in folders]
        return [(folder, m) for folder, m in found if m is not None and m.name == label]

    def with_students(self, students: Mapping[str, StudentConfig]) -> Inventory:
        """The same working folder with other students configured."""
        named = {require_name(name, "Student"): student for name, student in students.items()}
        config = self.config.model_copy(update={"students": named})
        return Inventory(replace(self.workspace, config=config), self.rows, self.live)

    def with_live_teachers(self) -> Inventory:
        """The same working folder, for students that are trained with their teachers in the loop."""
        return Inventory(self.workspace, self.rows, live=True)

    def student_name(self, name: str) -> str:
        """The name under which a student is kept: pilots and students with teachers in the loop have their own.
        Raises UserError: no usable name, or another student has it."""
        ending = (LIVE if self.live else "") + (PILOT if self.rows is not None else "")
        return label_of(self.config, name, ending)

    def datasets_of(self, student: str) -> list[Dataset] | None:
        """The training sets of a configured student; None while one is not indexed."""
        found = [self.dataset(name).dataset for name in self.config.students[student].datasets]
        return None if None in found else [dataset for dataset in found if dataset is not None]

    def student_definition(self, name: str) -> StudentDefinition | None:
        """What the configured student would be made from; None while a dataset of it is not indexed.

        Raises:
            UserError: no weights of a teacher.
            NotFinishedError: a student that it starts from is not finished.
        """
        datasets = self.datasets_of(name)
        if datasets is None:
            return None
        teachers = student_teachers(self.config, name)
        start = self.start(name)
        needs = [self.training_needs(teachers, data.manifest.name) for data in datasets]
        features = [{need.encoder: need.definition for need in mine} for mine in needs]
        first, *others = [(d.manifest, f, self.block_limit(d)) for d, f in zip(datasets, features, strict=True)]
        wanted = student_definition(
            self.config,
            name,
            *first,
            self.config.views.count,
            patch_views=self.config.views.patch,
            patch_every=self.config.views.patch_every,
            start=None if start is None else Origin.of(start),
            mixed=others,
            live=self.live,
        )
        return self._as_begun(self.student_name(name), wanted)

    def _as_begun(self, label: str, wanted: StudentDefinition) -> StudentDefinition:
        """The definition of the training that there is, if it differs in CPU threads alone: nobody wants that twice."""
        if (student_folder(self.folder, label, wanted) / "manifest.json").is_file():
            return wanted

        def same(definition: StudentDefinition) -> StudentDefinition:
            config = definition.config.model_copy(update={"threads": wanted.config.threads})
            return definition.model_copy(update={"config": config})

        found = [(folder, m.definition) for folder, m in self._trainings(label) if same(m.definition) == wanted]
        found.sort(key=lambda pair: finished_student(label, pair[0]) is None)
        return found[0][1] if found else wanted

    def start(self, name: str) -> FinishedStudent | ResolvedEncoder | None:
        """What a student starts from: a finished student with its ladder, or weights; None: nothing.

        Raises:
            UserError: there is no such student, teacher or encoder, or its weights are missing or do not fit.
            NotFinishedError: a student that has not been trained to the end as it is configured now.
        """
        student, who = self.config.students[name], f"Student {name}"
        if student.start is None:
            return None
        # The reference with teachers in the loop starts from the same student as the one that it is compared with.
        usual = Inventory(self.workspace, self.rows) if self.live else self
        if usual.is_student(student.start.encoder):
            return usual.finished(student.start.encoder, who)
        config = source_of(student, self.config.teachers, who)
        other = named_student(config.encoder)
        if other is not None:
            return usual.student_encoder(usual.finished(other, who), name, config)
        return usual.encoder(name, config, student)

    def is_student(self, start: str) -> bool:
        """Whether a start is the bare name of a student. One that nothing has is taken for a student's, too."""
        weights = ":" in start or start == PRETRAINED or is_known(start)
        return start in self.config.students or not weights or start in self.finished_students

    @cached_property
    def finished_students(self) -> Mapping[str, FinishedStudent]:
        """Every student that a pointer in `students/` names and that has been exported, by name, in the order in which
        tables list them."""
        found: dict[str, FinishedStudent] = {}
        base = self.folder / "students"
        for entry in sorted(base.iterdir()) if base.is_dir() else []:
            if not entry.is_symlink():
                continue
            folder = resolve_pointer(base, entry.name)
            student = finished_student(entry.name, folder) if folder is not None else None
            if student is not None:
                found[entry.name] = student
        return {name: found[name] for name in in_order(found, self.config.students)}

    def finished(self, name: str, who: str) -> FinishedStudent:
        """The finished student of that name, as it is configured now; one that is not configured, as its pointer says.

        Raises:
            UserError: there is no such student; the message begins with `who` asks for it.
            NotFinishedError: it, or one that it waits for itself, has not been trained to the end.
        """
        label = self.student_name(name)
        hint: str | None = f"unic-pipe distill --student {name}"
        if name in self.config.students:
            try:
                definition = self.student_definition(name)
            except NotFinishedError as error:
                definition, hint = None, error.hint
            found = definition and finished_student(label, student_folder(self.folder, label, definition))
        else:
            found = self.finished_students.get(label)
            if found is None:
                known = did_you_mean(name, list(self.config.students))
                raise UserError(f"{who}: no student is named {name!r}{known}", "Add it under students:.")
        if not found:
            message = f"{who} waits for students/{label}, which is not finished."
            raise NotFinishedError(message, hint, f"students/{label}")
        return found

    def student_encoder(
        self, student: FinishedStudent, name: str | None = None, config: EncoderConfig | None = None
    ) -> ResolvedEncoder:
        """An exported student as an encoder, under its own name and settings or a teacher's.

        Raises:
            StageError: it is not what the training exported.
        """
        export = (student.folder / "export").relative_to(self.folder).as_posix()
        settings = (config or EncoderConfig()).model_copy(update={"encoder": f"checkpoint:{export}"})
        encoder = self.encoder(name or student.name, settings)
        found = sha256_of_file(student.folder / "export" / "config.json")
        if (encoder.definition.weights, found) != (student.export.weights, student.export.config):
            file = "config.json" if found != student.export.config else "model.safetensors"
            raise StageError(
                f"Student {student.name}: {export}/{file} is not what its training exported.",
                f"Restore it; or export it again: mv {export} {export}.old; unic-pipe distill --student {student.name}",
            )
        return encoder

    def baseline(self, name: str, config: StudentConfig) -> ResolvedEncoder:
        """A student's architecture at random initialisation, as an encoder."""
        return self.encoder(f"{name}{BASELINE}", baseline_config(config))
