"""The distill stage as a command runs it: find the inputs, refuse what does not match, train parents before children."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack

from pipeline.ablation import ablation
from pipeline.cache.reader import FeatureCache
from pipeline.differences import describe
from pipeline.features import FeatureNeed
from pipeline.finished import checkpoint_step, finished_student
from pipeline.inventory import Inventory
from pipeline.locks import exclusive
from pipeline.progress import Reporter
from pipeline.stopping import Stop
from pipeline.students import student_folder, student_order, student_teachers, students_before
from schemas.errors import UserError, did_you_mean
from schemas.features import FeatureManifest
from schemas.students import StudentDefinition, StudentManifest
from stages.distill.data.feed import Source
from stages.distill.live_check import check_teachers
from stages.distill.parallel.members import refuse_uneven
from stages.distill.parallel.world import World
from stages.distill.run import StudentJob, distill
from stages.distill.training import Diverged


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


def with_variants(inventory: Inventory, names: Sequence[str]) -> tuple[Inventory, tuple[str, ...]]:
    """The inventory with the paper's variants of one student configured, and their names.

    Raises:
        UserError: several students are named, or there is nothing to take away from this one.
    """
    if len(names) != 1:
        raise UserError(
            f"--ablation takes one student apart, and there are {len(names)}: {', '.join(names)}.",
            f"unic-pipe distill --ablation --student {names[0]}",
        )
    variants = ablation(inventory.config, names[0])
    return inventory.with_students({**variants, **inventory.config.students, **variants}), tuple(variants)


def distill_students(
    inventory: Inventory,
    names: Collection[str],
    device: str,
    restart: bool,
    reporter: Reporter,
    stop: Stop,
    live_check: bool = True,
    world: World | None = None,
) -> None:
    """Train or resume students, parents first, and otherwise as many together as can be; finished ones are left alone.

    With `live_check`, every teacher is run again on a few samples first. `world`: processes that train together.

    Raises:
        UserError: features or a parent are incomplete, the settings changed in the middle of a training, or the
            processes cannot share its batches.
        StageError: a training failed (others go on first), or another process is training one of the students.
    """
    world = world or World()
    refuse_uneven({name: inventory.config.students[name] for name in names}, world.size)
    failed: dict[str, Diverged] = {}
    waiting = [name for name in student_order(inventory.config) if name in names]
    while waiting and not world.stopping(stop):
        needs = {name: students_before(inventory.config, name) for name in waiting}
        ready = [name for name in waiting if not needs[name] & set(waiting)]
        waiting = [name for name in waiting if name not in ready]
        lost = {name: min(needs[name] & failed.keys()) for name in ready if needs[name] & failed.keys()}
        for name, parent in lost.items():
            reporter.say(f"Student {name} is not trained: it needs {parent}, which failed.")
        able = [name for name in ready if name not in lost]
        failed |= _distill_together(inventory, able, device, restart, reporter, stop, live_check, world)
        failed |= {name: failed[parent] for name, parent in lost.items()}
    for error in failed.values():
        raise error


def distill_student(
    inventory: Inventory, name: str, device: str, restart: bool, reporter: Reporter, stop: Stop
) -> None:
    """Train or resume one student; as `distill_students`."""
    distill_students(inventory, [name], device, restart, reporter, stop)


def _distill_together(
    inventory: Inventory,
    names: Sequence[str],
    device: str,
    restart: bool,
    reporter: Reporter,
    stop: Stop,
    live_check: bool,
    world: World,
) -> dict[str, Diverged]:
    """Train students that do not wait for each other; those that diverged, by name."""
    with world.in_turn():
        jobs = [_job(inventory, name, restart, reporter) for name in names]
        if live_check and world.first:
            check_teachers(inventory, jobs, world.device(device), reporter)
    with ExitStack() as stack:
        for job in jobs if world.first else ():
            folder = student_folder(inventory.folder, job.name, job.definition)
            lock = inventory.folder / "runs" / f"{folder.name}.lock"
            stack.enter_context(exclusive(lock, f"Distillation of {job.name}"))
        outcomes = distill(
            jobs,
            workdir=inventory.folder,
            settings=inventory.config.distill,
            device=device,
            reporter=reporter,
            stop=stop,
            world=world,
        )
    return {name: o.error for name, o in zip(names, outcomes, strict=True) if o.error is not None}


def _job(inventory: Inventory, name: str, restart: bool, reporter: Reporter) -> StudentJob:
    """What a student is made from, if all of it is there."""
    definition = inventory.student_definition(name)
    student = inventory.config.students[name]
    dataset = inventory.dataset(student.dataset).dataset
    assert definition is not None, "indexed before"
    assert dataset is not None, "indexed before"
    label = inventory.student_name(name)
    if finished_student(label, student_folder(inventory.folder, label, definition)) is None:
        _refuse_changes(inventory, label, definition, restart, reporter)
    teachers = student_teachers(inventory.config, name)
    needs = inventory.training_needs(teachers, student.dataset)
    _require_complete(inventory, needs, definition.blocks)
    return StudentJob(
        label,
        definition,
        Source(dataset, {need.encoder: _open(inventory, need) for need in needs}),
        _validation(inventory, teachers),
        inventory.parent(name),
        {teacher: inventory.teacher(teacher) for teacher in teachers} if definition.live else None,
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
    return FeatureCache(inventory.feature_folder(need))


def _require_complete(inventory: Inventory, needs: Sequence[FeatureNeed], blocks: int) -> None:
    """Every unit that training reads must be recorded."""
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
