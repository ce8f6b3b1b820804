"""Names of a configuration that are two there, and would be one on disk or in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import UserError

CENTER = "-center"
"""Ends the name of features of centre crops (`FeatureNeed.pointer`)."""
BASELINE = "-random"
"""Ends the name of a student's architecture at random initialisation."""


def require_told_apart(config: Config, file: Path) -> None:
    """Look for names that collide; `file` is the configuration's, in the working folder.

    Raises:
        UserError: two datasets or students differ in capitals alone on a disk that ignores them, two encoders have one
            name in tables, or two sets of features would have one name on disk.
    """
    same: Callable[[str], str] = str.casefold if _ignores_case(file) else str
    baselines = [f"{name}{BASELINE}" for name in config.students] if config.evaluate.baseline else []
    own = [*config.teachers, *config.students, *baselines]
    for kind, names in (("dataset", config.samples.datasets), ("encoder", own)):
        if (twice := _twice((same(name), name) for name in names)) is not None:
            capitals = " differ in capitals alone, which this disk ignores" if len(set(twice)) > 1 else ""
            shown = " and ".join(twice) if capitals else f"of the name {twice[0]} are two"
            raise UserError(f"The {kind}s {shown}{capitals}.", "Rename one of them.")
    encoders = [*own, *config.evaluate.encoders]
    stored = [
        *((teacher, "") for teacher in config.teachers),
        *((encoder, CENTER) for encoder in dict.fromkeys(encoders)),
    ]
    features = [
        (f"{dataset}-{encoder}{end}", f"{encoder} on {dataset}{' (centre crops)' if end else ''}")
        for dataset in config.samples.datasets
        for encoder, end in stored
    ]
    if (twice := _twice((same(name), what) for name, what in features)) is not None:
        name = next(name for name, what in features if what == twice[1])
        raise UserError(
            f"Features of {twice[0]} and of {twice[1]} would both be features/{name}.",
            "Rename one of these datasets or encoders.",
        )


def _twice(named: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first two of (name, what it names) that have the same name."""
    found: dict[str, str] = {}
    for name, what in named:
        if name in found:
            return found[name], what
        found[name] = what
    return None


def _ignores_case(file: Path) -> bool:
    """Whether a file is found by its name in capitals, too."""
    try:
        return file.with_name(file.name.upper()).samefile(file)
    except OSError:
        return False
