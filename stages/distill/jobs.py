"""What a student is trained from: found in the working folder, and refused where it is incomplete or does not match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.classifiers import classifier_of
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.pipeline.workspace.documents import FinishedStudent, checkpoint_step, finished_student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.students import student_folder, student_teachers
from unic_pipe.pipeline.workspace.trainable import start_of
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.students import StudentDefinition, StudentManifest
from unic_pipe.stages.distill.data.rows import Source


@dataclass(frozen=True)
class StudentJob:
    """A student to train, and what it is made from."""

    name: str
    """Its folder is `students/<name>-<8 digits>`, and `students/<name>` will point to it."""
    definition: StudentDefinition
    """From `pipeline.workspace.students.student_definition`."""
    training: tuple[Source, ...]
    """The training sets, each with a cache for every teacher of the definition that teaches on it."""
    validation: tuple[Source, ...] = ()
    """Samples and centre-crop features for the validation loss."""
    start: FinishedStudent | ResolvedEncoder | None = None
    """The student or the weights that it starts from."""
    teachers: Mapping[str, ResolvedEncoder] | None = None
    """Every teacher, when they run in the loop."""
    classifier: Callable[[str], Doubles] | None = None
    """Gives a teacher's, (C, D + 1) with biases in the last column, for a loss about logits."""


def find_job(inventory: Inventory, name: str, restart: bool, reporter: Reporter) -> StudentJob:
    """What a configured student is made from; `restart`: also where a training with other settings was begun.

    Raises:
        UserError: features or a parent are incomplete, the settings changed in the middle of a training, or the loss needs
            a cache and teachers run in the loop.
    """
    start = start_of(inventory, name)
    definition = inventory.student_definition(name)
    datasets, shares = inventory.datasets_of(name), inventory.config.students[name].datasets
    assert definition is not None, "indexed before"
    assert datasets is not None, "indexed before"
    if definition.live and definition.config.loss.needs_queue:
        raise UserError(
            f"Student {name} compares with a queue of cached targets (queue_similarity), which teachers in the loop do not fill.",
            "Train it from the cache, or take the term out of its loss.",
        )
    label = inventory.student_name(name)
    if finished_student(label, student_folder(inventory.folder, label, definition)) is None:
        _refuse_changes(inventory, label, definition, restart, reporter)
    teachers = student_teachers(inventory.config, name)
    return StudentJob(
        label,
        definition,
        tuple(
            _source(inventory, data, inventory.training_needs(teachers, data.manifest.name), blocks, share)
            for data, (_, blocks), share in zip(datasets, definition.datasets, shares.values(), strict=True)
        ),
        _validation(inventory, teachers),
        start,
        {teacher: inventory.teacher(teacher) for teacher in teachers} if definition.live else None,
        classifier_of(inventory, definition.config.loss),
    )


def _validation(inventory: Inventory, teachers: tuple[str, ...]) -> tuple[Source, ...]:
    needs, found = inventory.validation_needs(teachers), []
    for name in inventory.config.distill.validations:
        dataset, mine = inventory.dataset(name).dataset, [need for need in needs if need.dataset == name]
        # A set on which none of its teachers teaches says nothing about this student.
        if dataset is not None and mine:
            found.append(_source(inventory, dataset, mine, dataset.blocks))
    return tuple(found)


def _source(
    inventory: Inventory, dataset: Dataset, needs: Sequence[FeatureNeed], blocks: int, share: float = 1.0
) -> Source:
    """The samples with their features, of which every unit must be recorded."""
    for need in needs:
        done, total = inventory.coverage(need, blocks)
        if done < total:
            old = inventory.pointed("features", need.pointer, FeatureManifest, need.folder_name)
            changed = f" Differs from what was extracted: {describe(old.definition, need.definition)}." if old else ""
            rows = f" --rows {inventory.rows}" if inventory.rows else ""
            raise UserError(
                f"Teacher {need.encoder} is incomplete on {need.dataset}: {done / total:.0%} "
                f"({done:,} of {total:,} units).{changed}",
                f"Run: unic-pipe extract --teacher {need.encoder}{rows}",
            )
    return Source(dataset, {need.encoder: FeatureCache(inventory.feature_folder(need)) for need in needs}, share)


def _refuse_changes(
    inventory: Inventory, label: str, definition: StudentDefinition, restart: bool, reporter: Reporter
) -> None:
    """A training that was begun with other settings is not silently abandoned; a finished one stays beside the new."""
    folder = student_folder(inventory.folder, label, definition)
    if restart or (folder / "manifest.json").exists():
        return
    begun = inventory.unfinished_student(label)
    if begun is not None:
        step = checkpoint_step(student_folder(inventory.folder, label, begun.definition)) or 0
        raise UserError(
            f"Student {label} is at step {step:,} of {begun.steps:,} with other settings; "
            f"differs: {describe(begun.definition, definition)}.",
            f"Restore them to go on; --student NEW keeps both; --restart trains the new ones as {label}.",
        )
    old = inventory.pointed("students", label, StudentManifest, folder.name)
    if old is not None:
        kept = student_folder(inventory.folder, label, old.definition).name
        reporter.say(
            f"{label}: differs: {describe(old.definition, definition)}. A new student is trained; students/{kept} is kept."
        )
