"""The paper's ladder of variants (UNIC, arXiv 2408.05088, section 4.2): one ingredient more at a time. Free of torch.

`NAME-basic`: one projector per teacher on the last block, raw targets, every teacher kept. `NAME-std`: standardized
targets. `NAME-ladder`: the ladder of projectors. `NAME`: teacher dropping, which is the configured student itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from unic_pipe.schemas.config import Config, LossConfig, StudentConfig
from unic_pipe.schemas.errors import UserError

BASIC, STANDARDIZED, LADDER = "-basic", "-std", "-ladder"
"""Appended to the name of a student for its variants, in the order of the paper's table."""
LIVE = "-live"
"""Appended to the name of a student that was trained with its teachers in the loop."""
PILOT = "-pilot"
"""Appended, after that, to the name of a student that was trained on a part of the rows (`--rows`)."""


def ablation(config: Config, name: str) -> dict[str, StudentConfig]:
    """The variants of a configured student, from the barest to itself. They share one cache and train in one pass.

    Raises:
        UserError: no such student, one that lacks an ingredient itself, or other students have the variants' names.
    """
    if name not in config.students:
        raise UserError(f"No student is named {name!r} (there are: {', '.join(config.students) or 'none'}).")
    full = config.students[name]
    missing = [ingredient for ingredient, there in _ingredients(full).items() if not there]
    if missing:
        raise UserError(
            f"Student {name} has no {' and no '.join(missing)}, so there is nothing to take away.",
            f"Use all three in students.{name}, or choose another one with --student.",
        )

    def loss(**changes: object) -> LossConfig:
        return full.loss.model_copy(update={"drop_probability": 0.0, **changes})

    single = full.ladder.model_copy(update={"blocks": "last"})
    variants = {
        name + BASIC: full.model_copy(update={"ladder": single, "loss": loss(standardize="none")}),
        name + STANDARDIZED: full.model_copy(update={"ladder": single, "loss": loss()}),
        name + LADDER: full.model_copy(update={"loss": loss()}),
        name: full,
    }
    taken = [variant for variant, student in variants.items() if config.students.get(variant, student) != student]
    if taken:
        raise UserError(
            f"Students {', '.join(taken)} are configured, and differ from the variants of {name} with these names.",
            "Rename them in unic-pipe.yaml.",
        )
    return variants


def setting_of(label: str) -> str:
    """The name in the configuration of a student that is kept under a label."""
    return label.removesuffix(PILOT).removesuffix(LIVE)


def in_order(names: Iterable[str], students: Collection[str]) -> list[str]:
    """Names of trained students as tables list them: as configured, each after its variants; then all others."""
    variants = (BASIC, STANDARDIZED, LADDER, "")
    suffixes = [variant + live + pilot for pilot in ("", PILOT) for live in ("", LIVE) for variant in variants]
    places = {name: i for i, name in enumerate(student + suffix for student in students for suffix in suffixes)}
    return sorted(names, key=lambda name: (places.get(name, len(students) * len(suffixes)), name))


def origins(name: str) -> list[str]:
    """A trained student's name, and what is left of it without what was appended for pilots, live teachers, variants."""
    found = [name]
    for suffixes in ((PILOT,), (LIVE,), (BASIC, STANDARDIZED, LADDER)):
        found += [found[-1].removesuffix(suffix) for suffix in suffixes if found[-1].endswith(suffix)]
    return found


def _ingredients(student: StudentConfig) -> dict[str, bool]:
    return {
        "standardization": student.loss.standardize != "none",
        "ladder": student.ladder.kind == "ladder" and student.ladder.blocks != "last",
        "teacher dropping": student.loss.balance == "dropping" and student.loss.drop_probability > 0,
    }
