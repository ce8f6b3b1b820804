"""The distill stage as a command runs it: which students, and parents before children."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from unic_pipe.pipeline.workspace.ablation import ablation
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.students import student_order, students_before
from unic_pipe.pipeline.workspace.trainable import refuse_unbuildable, refuse_untrainable
from unic_pipe.schemas.config import Config, StudentConfig
from unic_pipe.schemas.errors import NotFinishedError, UserError, did_you_mean
from unic_pipe.stages.distill.blueprint import judge_students
from unic_pipe.stages.distill.jobs import find_job
from unic_pipe.stages.distill.live_check import check_teachers
from unic_pipe.stages.distill.parallel.members import refuse_uneven
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import distill
from unic_pipe.stages.distill.training import Diverged

Variants = Callable[[Config, str], dict[str, StudentConfig]]
"""The students, by name, that are made from a configured one."""


def distill_students(
    inventory: Inventory,
    names: Collection[str],
    context: Context,
    *,
    device: str,
    restart: bool = False,
    live_check: bool = True,
) -> None:
    """Train or resume students, parents first, and otherwise as many together as can be; finished ones are left alone.

    With `live_check`, every teacher is run again on a few samples first.

    Raises:
        UserError: features or a parent are incomplete, the settings changed in the middle of a training, or the
            processes cannot share its batches, or `distill.micro_batch` not take them in parts.
        StageError: a training failed (others go on first), or another process is training one of the students.
    """
    config, world, reporter = inventory.config, context.world, context.reporter
    refuse_uneven({name: config.students[name] for name in names}, world.size)
    if config.distill.micro_batch is not None:
        with world.in_turn():
            found = judge_students(inventory)
            for name in names:
                refuse_unbuildable(inventory, name, found)
    failed: dict[str, Diverged] = {}
    waiting = [name for name in student_order(config) if name in names]
    while waiting and not world.stopping(context.stop):
        parents = {name: students_before(config, name) for name in waiting}
        ready = [name for name in waiting if not parents[name] & set(waiting)]
        waiting = [name for name in waiting if name not in ready]
        lost = {name: min(parents[name] & failed.keys()) for name in ready if parents[name] & failed.keys()}
        for name, parent in lost.items():
            reporter.say(f"Student {name} is not trained: it needs {parent}, which failed.")
            failed[name] = failed[parent]
        able = [name for name in ready if name not in lost]
        with world.in_turn():
            jobs = [find_job(inventory, name, restart, reporter) for name in able]
            if live_check and world.first:
                check_teachers(inventory, jobs, world.device(device), reporter, context.stop)
        errors = distill(jobs, context, workdir=inventory.folder, settings=config.distill, device=device)
        failed |= {name: errors[job.name] for name, job in zip(able, jobs, strict=True) if job.name in errors}
    for error in failed.values():
        raise error


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


def with_variants(
    inventory: Inventory, names: Sequence[str], variants_of: Variants = ablation, option: str = "--ablation"
) -> tuple[Inventory, tuple[str, ...]]:
    """The inventory with the variants of one student (of each of its seeds) configured, and their names.

    `option`: what was typed to have them.

    Raises:
        UserError: several students are named, or this one has no such variants.
    """
    if len(names) != 1 and set(names) not in map(set, inventory.workspace.seeded.values()):
        raise UserError(
            f"{option.split()[0]} takes one student, and there are {len(names)}: {', '.join(names)}.",
            f"unic-pipe distill {option} --student {names[0]}",
        )
    variants = {n: variant for name in names for n, variant in variants_of(inventory.config, name).items()}
    return inventory.with_students({**variants, **inventory.config.students, **variants}), tuple(variants)


def refuse_variants(inventory: Inventory, names: Sequence[str]) -> None:
    """Say of all variants that cannot be trained why, before the first is.

    Raises:
        UserError: some cannot.
    """
    found, problems = judge_students(inventory), list[UserError]()
    for name in names:
        try:
            refuse_untrainable(inventory, name, found)
            inventory.student_definition(name)
        except NotFinishedError:
            raise
        except UserError as error:
            problems.append(error)
    said = dict.fromkeys(error.message for error in problems)
    if len(problems) == len(names) and len(said) == 1:
        raise problems[0]  # it is not about recipes or ingredients
    if problems:
        lines = ["These cannot be trained, so nothing was begun:", *said]
        raise UserError("\n  ".join(lines), "Leave them out, or change the student whose variants they are.")
