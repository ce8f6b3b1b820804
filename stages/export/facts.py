"""What a model card says of a student: whose weights had a part in it, under which licences, and its scores.

Only what can be proved is said: a teacher's licence counts for the student if the weights under its name are still those
whose features were learned from.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from unic_pipe.pipeline.cache.records import folder_of
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.encoders.licences import UNKNOWN, derived_licence
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.pointers import pointers, resolve_pointer
from unic_pipe.pipeline.workspace.documents import FinishedStudent
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import FOLDER, RESULTS, read_record
from unic_pipe.pipeline.workspace.seeds import seed_groups
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.students import StudentDefinition, TeacherInput
from unic_pipe.stages.export.subject import Subject


@dataclass(frozen=True)
class Part:
    """Weights that had a part in a student; empty is not known."""

    role: Literal["teacher", "start"]
    name: str
    source: str = ""
    architecture: str = ""
    image_size: int | None = None
    weights: str = ""
    """SHA-256 of their file."""
    licence: str = UNKNOWN
    why: str = ""
    """Why the licence is not known."""


@dataclass(frozen=True)
class Score:
    """A metric of the student as it is stored, and over the students that differ from it in the seed alone."""

    benchmark: str
    probe: str
    metric: str
    value: float
    over_seeds: tuple[float, ...]
    """Its own and theirs."""

    @property
    def deviation(self) -> float | None:
        """Standard deviation over training seeds (n - 1); None of one."""
        return statistics.stdev(self.over_seeds) if len(self.over_seeds) > 1 else None


class Facts(NamedTuple):
    """All of it."""

    licence: str
    parts: tuple[Part, ...] = ()
    scores: tuple[Score, ...] = ()


def facts_of(it: Subject) -> Facts:
    """What is known of a student; of a folder alone, the licence that it states.
    Raises DamagedError: a result of its evaluations is not what was written."""
    if it.student is None or it.inventory is None:
        return Facts(licence_of(it))
    return Facts(licence_of(it), Origins(it.inventory).parts(it.student), scores_of(it.student, it.inventory))


def licence_of(it: Subject) -> str:
    """What follows for a student from those of its parts; of a folder, what that states."""
    if it.student is None or it.inventory is None:
        return it.encoder.licence
    return Origins(it.inventory).licence(it.student)


class Origins:
    """Finds the parts of students in their working folder."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def parts(self, student: FinishedStudent) -> tuple[Part, ...]:
        """A student's teachers, in order, and the weights that it started from."""
        definition = student.manifest.definition
        found = [self._teacher(definition, teacher) for teacher in definition.teachers]
        if definition.parent is not None:
            found.append(self._start(student.name, definition, definition.parent))
        return tuple(found)

    def licence(self, student: FinishedStudent) -> str:
        """What follows from those of its parts."""
        return derived_licence(part.licence for part in self.parts(student))

    @cached_property
    def _students(self) -> Mapping[str, FinishedStudent]:
        return {student.export.weights: student for student in self._inventory.finished_students.values()}

    def _teacher(self, student: StudentDefinition, teacher: TeacherInput) -> Part:
        try:
            learned = self._learned_from(student, teacher)
        except UnicPipeError:  # its words would be about paths of this machine
            return Part("teacher", teacher.name, why="its features cannot be read any more")
        if learned is None:
            return Part(
                "teacher", teacher.name, why="its features are gone, so nothing tells which weights they were of"
            )
        part = self._part("teacher", teacher.name, learned.weights, lambda: self._inventory.teacher(teacher.name))
        return Part(**{**vars(part), "architecture": learned.architecture, "image_size": learned.image_size})

    def _start(self, name: str, definition: StudentDefinition, weights: str) -> Part:
        start = definition.config.start
        assert start is not None, "it has a parent"
        then = self._inventory.with_students({name: definition.config})
        return self._part("start", public_name(start.encoder), weights, lambda: then.start(name))

    def _part(
        self,
        role: Literal["teacher", "start"],
        name: str,
        weights: str,
        now: Callable[[], ResolvedEncoder | FinishedStudent | None],
    ) -> Part:
        """Weights by their digest: a student's of this working folder, or those that their name means `now`."""
        student = self._students.get(weights)
        if student is not None:
            config, licence = student.manifest.definition.config, self.licence(student)
            why = "one of its own teachers' is not known" if licence == UNKNOWN else ""
            source = f"student {student.name}"
            return Part(role, name, source, config.architecture, config.image_size, weights, licence, why)
        try:
            found = now()
        except UnicPipeError:
            return Part(role, name, weights=weights, why="its weights are no longer where they were")
        if not isinstance(found, ResolvedEncoder) or found.definition.weights != weights:
            return Part(role, name, weights=weights, why="its name means other weights now")
        why = "it is recorded nowhere" if found.licence == UNKNOWN else ""
        seen = found.definition
        return Part(role, name, _public(found), seen.architecture, seen.image_size, weights, found.licence, why)

    def _learned_from(self, student: StudentDefinition, teacher: TeacherInput) -> EncoderDefinition | None:
        """The encoder whose features a student learned: as their folder says, or as they would be made today."""
        digests = {teacher.features, *(part.features.get(teacher.name) for part in student.mixed)} - {None}
        places = (self._inventory.workspace.features, *self._inventory.workspace.feature_roots)
        for digest in digests:
            found = (folder_of(place, digest) for place in places if digest is not None)
            for manifest, _ in filter(None, found):
                return manifest.definition.encoder
        if teacher.name in self._inventory.config.teachers:
            for dataset in self._inventory.config.samples.datasets:
                for need in self._inventory.training_needs((teacher.name,), dataset):
                    if need.digest in digests:
                        return need.definition.encoder
        return None


def public_name(choice: str) -> str:
    """What an encoder is named by; of a file of the user's its name, as in `_public`."""
    kind, colon, path = choice.partition(":")
    return f"{kind}:{Path(path).name}" if kind == "checkpoint" and colon else choice


def _public(encoder: ResolvedEncoder) -> str:
    """Where weights come from; of a file of the user's its name, since a path is nobody else's business."""
    path = Path(encoder.source)
    own = path.is_absolute() or (encoder.weights_path is not None and path.name == encoder.weights_path.name)
    return path.name if own else encoder.source


def scores_of(student: FinishedStudent, inventory: Inventory) -> tuple[Score, ...]:
    """Everything that the evaluations of the working folder say of a student, by benchmark, probe and metric.
    Raises DamagedError: a record is not what was written."""
    finished = inventory.finished_students
    groups = seed_groups({name: each.manifest.definition for name, each in finished.items()})
    members = next((group.members for group in groups if student.name in group.members), (student.name,))
    digests = {}
    for name in members:
        with suppress(UnicPipeError):  # another student's damage is no reason not to export this one
            digests[inventory.student_encoder(finished[name]).digest] = name
    values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    base = inventory.folder / FOLDER
    for pointer in pointers(LocalStore(base)):
        folder = resolve_pointer(base, pointer)
        for path in sorted((folder / RESULTS).glob("*.json")) if folder is not None else []:
            record = read_record(path)
            if record is not None and record.status == "done" and record.definition.encoder in digests:
                for metric, value in record.metrics.items():
                    name = digests[record.definition.encoder]
                    values[record.benchmark, record.definition.probe, metric][name] = value
    return tuple(
        Score(*key, by_student[student.name], tuple(by_student.values()))
        for key, by_student in sorted(values.items())
        if student.name in by_student
    )
