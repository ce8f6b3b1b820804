"""Names of students that are made from a configured one: what is appended to its name, in what order, and back. Free of torch.

`NAME-basic`, `-std`, `-ladder`: variants of an ablation. `NAME-RECIPE`, with `-unic-rate` or `-own-rate`: by a recipe of the
field. Then `-live` and `-pilot`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from unic_pipe.schemas.base import require_name
from unic_pipe.schemas.config import Config, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.presets import ALIASES, PRESETS

BASIC, STANDARDIZED, LADDER = "-basic", "-std", "-ladder"
"""Appended to the name of a student for its variants, in the order of the paper's table."""
LIVE = "-live"
"""Appended to the name of a student that was trained with its teachers in the loop."""
PILOT = "-pilot"
"""Appended, after that, to the name of a student that was trained on a part of the rows (`--rows`)."""
RATES = {"published": "", "unic": "-unic-rate", "own": "-own-rate"}
"""Appended to the name of a student by a recipe, by which learning rate it has."""
SHORT = {preset: short for short, preset in ALIASES.items()}
RECIPES = tuple(f"-{SHORT.get(preset, preset)}{rate}" for preset in PRESETS for rate in RATES.values())
"""Appended to the name of a student for its recipes, in the order of the presets."""
_VARIANTS = (BASIC, STANDARDIZED, LADDER, "", *RECIPES)


def student_named(config: Config, name: str) -> StudentConfig:
    """A configured student.

    Raises:
        UserError: there is none of that name.
    """
    if name not in config.students:
        raise UserError(f"No student is named {name!r} (there are: {', '.join(config.students) or 'none'}).")
    return config.students[name]


def require_free(config: Config, name: str, variants: Mapping[str, StudentConfig]) -> None:
    """Take no name from another student.

    Raises:
        UserError: students that differ from the variants of student `name` have their names.
    """
    taken = [variant for variant, student in variants.items() if config.students.get(variant, student) != student]
    if taken:
        raise UserError(
            f"Students {', '.join(taken)} are configured, and differ from the variants of {name} with these names.",
            "Rename them in unic-pipe.yaml.",
        )


def label_of(config: Config, name: str, ending: str) -> str:
    """The name under which a student is kept that is trained otherwise than configured (`LIVE`, `PILOT`).

    Raises:
        UserError: no usable name, or another student has it.
    """
    label = require_name(f"{name}{ending}", "Student")
    if ending and label in config.students:
        raise UserError(
            f"Student {name} would be kept as {label} here, and a student of that name is configured.",
            "Rename that one.",
        )
    return label


def setting_of(label: str) -> str:
    """The name in the configuration of a student that is kept under a label."""
    return label.removesuffix(PILOT).removesuffix(LIVE)


def in_order(names: Iterable[str], students: Collection[str]) -> list[str]:
    """Names of trained students as tables list them: as configured, each with its variants; then all others."""
    suffixes = [variant + live + pilot for pilot in ("", PILOT) for live in ("", LIVE) for variant in _VARIANTS]
    places: dict[str, int] = {}
    for name in (student + suffix for student in students for suffix in suffixes):
        places[name] = len(places)
    return sorted(names, key=lambda name: (places.get(name, len(students) * len(suffixes)), name))


def origins(name: str) -> list[str]:
    """A trained student's name, and what is left of it without what was appended for pilots, live teachers, variants."""
    found = [name]
    for suffixes in ((PILOT,), (LIVE,), tuple(sorted(filter(None, _VARIANTS), key=len, reverse=True))):
        longest = next((suffix for suffix in suffixes if found[-1].endswith(suffix)), None)
        found += [found[-1].removesuffix(longest)] if longest is not None else []
    return found
