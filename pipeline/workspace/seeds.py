"""Students of one configuration that differ in their seed alone: made from `seeds`, or found among others. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from unic_pipe.schemas.base import digest_of, require_name
from unic_pipe.schemas.config import Config, StudentConfig
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.students import StudentDefinition


def with_seeds(config: Config) -> tuple[Config, dict[str, tuple[str, ...]]]:
    """The configuration with a student `NAME-SEED` for each of the `seeds` of a student NAME, in its place; their names
    by NAME.

    Raises:
        UserError: another student has such a name, or it is no usable name.
    """
    students: dict[str, StudentConfig] = {}
    made: dict[str, tuple[str, ...]] = {}
    for name, student in config.students.items():
        if student.seeds is None:
            students[name] = student
            continue
        seeds = {require_name(f"{name}-{seed}", "Student"): seed for seed in student.seeds}
        taken = sorted(seeds.keys() & {*config.students, *config.teachers, *students})
        if taken:
            raise UserError(
                f"students.{name}.seeds makes a student {taken[0]}, and there is one of that name already.",
                "Rename it, or take its seed out of the list.",
            )
        students |= {n: student.model_copy(update={"seeds": None, "seed": seed}) for n, seed in seeds.items()}
        made[name] = tuple(seeds)
    return config.model_copy(update={"students": students}), made


def as_written(error: UnicPipeError, made: Mapping[str, tuple[str, ...]]) -> UnicPipeError:
    """An error whose hint names settings as the file has them: `students.main` for `students.main-0` of its seeds."""
    for name, students in made.items():
        for student in students:
            error.hint = error.hint and error.hint.replace(f"students.{student}.", f"students.{name}.")
    return error


@dataclass(frozen=True)
class SeedGroup:
    """Trained students that differ in their seed alone."""

    name: str
    """What their names have in common: `main` of `main-0` and `main-1`; all their names where that is nothing."""
    members: tuple[str, ...]
    same_order: bool
    """Whether they saw the same batches, views and drops, so that their spread leaves out what the order does."""


def seed_groups(definitions: Mapping[str, StudentDefinition]) -> tuple[SeedGroup, ...]:
    """The students, by name, that differ in their seed alone, two or more at a time, in order of first appearance.

    CPU threads, which change the rounding of sums, may differ too.
    """
    groups: dict[str, dict[int, str]] = {}
    for name, definition in definitions.items():
        config = definition.config.model_copy(update={"seed": 0, "threads": 1})
        others = digest_of(definition.model_copy(update={"config": config}))
        # Of one student under several names the first counts.
        groups.setdefault(others, {}).setdefault(definition.config.seed, name)
    return tuple(
        SeedGroup(_common(names), tuple(names.values()), definitions[min(names.values())].config.order_seed is not None)
        for names in groups.values()
        if len(names) > 1
    )


def _common(names: Mapping[int, str]) -> str:
    bare = {re.sub(rf"-{seed}(?=-|$)", "", name, count=1) for seed, name in names.items()}
    return bare.pop() if len(bare) == 1 else ", ".join(names.values())
