"""The distill stage as a command runs it: find the inputs, refuse what does not match, train one student."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cache.reader import FeatureCache
from pipeline.differences import describe
from pipeline.features import FeatureNeed
from pipeline.inventory import Inventory, checkpoint_step, finished_student
from pipeline.locks import exclusive
from pipeline.progress import Reporter
from pipeline.stopping import Stop
from pipeline.students import student_folder, student_teachers
from schemas.errors import UserError, did_you_mean
from schemas.features import FeatureManifest
from schemas.students import StudentDefinition, StudentManifest
from stages.distill.run import Source, distill


def named_students(inventory: Inventory, names: Sequence[str]) -> Inventory:
    """The inventory with every named student configured: a new name takes the settings of the only student there is.

    Raises:
        UserError: no student is configured, or a new name could mean several.
    """
    students = inventory.config.students
    if not students:
        raise UserError("No student is configured.", "Add one under students: in unic-pipe.yaml (see unic-pipe init).")
    new = [name for name in names if name not in students]
    if not new:
        return inventory
    if len(students) > 1:
        raise UserError(
            f"No student is named {new[0]!r}{did_you_mean(new[0], list(students))}",
            "Add it under students: in unic-pipe.yaml, or choose one that is there.",
        )
    settings = next(iter(students.values()))
    return inventory.with_students({**students, **dict.fromkeys(new, settings)})


def distill_student(
    inventory: Inventory, name: str, device: str, restart: bool, reporter: Reporter, stop: Stop
) -> None:
    """Train or resume one student; a finished one is left alone.

    Raises:
        UserError: features are incomplete, or the settings changed in the middle of a training.
        StageError: the training failed, or another process is training this student.
    """
    definition = inventory.student_definition(name)
    student = inventory.config.students[name]
    dataset = inventory.dataset(student.dataset).dataset
    assert definition is not None, "indexed before"
    assert dataset is not None, "indexed before"
    label = inventory.student_name(name)
    folder = student_folder(inventory.folder, label, definition)
    if finished_student(label, folder) is None:
        _refuse_changes(inventory, label, definition, restart, reporter)
    teachers = student_teachers(inventory.config, name)
    needs = inventory.training_needs(teachers, student.dataset)
    _require_complete(inventory, needs, definition.blocks)
    training = Source(dataset, {need.encoder: _open(inventory, need) for need in needs})
    with exclusive(inventory.folder / "runs" / f"{folder.name}.lock", f"Distillation of {label}"):
        distill(
            label,
            definition,
            training,
            _validation(inventory, teachers),
            workdir=inventory.folder,
            settings=inventory.config.distill,
            device=device,
            reporter=reporter,
            stop=stop,
        )


def _validation(inventory: Inventory, teachers: tuple[str, ...]) -> Source | None:
    name = inventory.config.distill.validation
    dataset = inventory.dataset(name).dataset if name is not None else None
    if dataset is None:
        return None
    needs = inventory.validation_needs(teachers)
    _require_complete(inventory, needs, dataset.blocks)
    return Source(dataset, {need.encoder: _open(inventory, need) for need in needs})


def _open(inventory: Inventory, need: FeatureNeed) -> FeatureCache:
    return FeatureCache.open(need.folder(inventory.folder))


def _require_complete(inventory: Inventory, needs: Sequence[FeatureNeed], blocks: int) -> None:
    """Every unit that training reads must be recorded."""
    for need in needs:
        done, total = inventory.coverage(need, blocks)
        if done < total:
            old = inventory.pointed("features", need.pointer, FeatureManifest, need.folder(inventory.folder))
            changed = f" Differs from what was extracted: {describe(old.definition, need.definition)}." if old else ""
            rows = f" --rows {inventory.rows}" if inventory.rows else ""
            raise UserError(
                f"Teacher {need.encoder} is incomplete on {need.dataset}: {done / total:.0%} "
                f"({done:,} of {total:,} units).{changed}",
                f"Run: unic-pipe extract --teacher {need.encoder}{rows}",
            )


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
    old = inventory.pointed("students", label, StudentManifest, folder)
    if old is not None:
        kept = student_folder(inventory.folder, label, old.definition).name
        reporter.say(
            f"{label}: differs: {describe(old.definition, definition)}. A new student is trained; students/{kept} is kept."
        )
