"""Names of a configuration that are two there, and would be one on disk or in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from unic_pipe.pipeline.storage import Store
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import FeatureManifest

T = TypeVar("T")

CENTER = "-center"
"""Ends the name of features of centre crops (`FeatureNeed.pointer`)."""
BASELINE = "-random"
"""Ends the name of a student's architecture at random initialisation."""


def require_told_apart(config: Config, file: Path, features: Callable[[], Store] | None = None) -> None:
    """Look for names that collide; `file` is the configuration's, in the working folder.

    Features that both lie in the store that `features` opens may go on: earlier versions made them, and their digests tell
    them apart.

    Raises:
        UserError: two datasets or students differ in capitals alone on a disk that ignores them, two encoders have one
            name in tables, or two sets of features would have one name on disk.
    """
    same = _sameness(file)
    baselines = [f"{name}{BASELINE}" for name in config.students] if config.evaluate.baseline else []
    own = [*config.teachers, *config.students, *baselines]
    for kind, names in (("dataset", config.samples.datasets), ("encoder", own)):
        if twice := _twice((same(name), name) for name in names):
            _, *both = twice[0]
            capitals = " differ in capitals alone, which this disk ignores" if len(set(both)) > 1 else ""
            shown = " and ".join(both) if capitals else f"of the name {both[0]} are two"
            raise UserError(f"The {kind}s {shown}{capitals}.", "Rename one of them.")
    shared = colliding(config, file)
    made = set().union(*(_made(features(), name) for name, *_ in shared)) if features is not None else set()
    for name, one, other in shared:
        if not {one.pair, other.pair} <= made:
            raise UserError(
                f"Features of {one} and of {other} would both be features/{name}.",
                "Rename one of these datasets or encoders.",
            )


class Stored(NamedTuple):
    """Features as they are stored."""

    dataset: str
    encoder: str
    ending: str
    """Of their name: `CENTER`, or nothing."""

    @property
    def pair(self) -> tuple[str, str]:
        """Dataset and encoder."""
        return self.dataset, self.encoder

    def __str__(self) -> str:
        return f"{self.encoder} on {self.dataset}{' (centre crops)' if self.ending else ''}"


def colliding(config: Config, file: Path) -> list[tuple[str, Stored, Stored]]:
    """Names on disk that two sets of features would share, and these, once for each two pairs of dataset and encoder."""
    same = _sameness(file)
    baselines = [f"{name}{BASELINE}" for name in config.students] if config.evaluate.baseline else []
    encoders = dict.fromkeys([*config.teachers, *config.students, *baselines, *config.evaluate.encoders])
    stored = [*((teacher, "") for teacher in config.teachers), *((encoder, CENTER) for encoder in encoders)]
    features = [Stored(dataset, *each) for dataset in config.samples.datasets for each in stored]
    twice = _twice((same(f"{f.dataset}-{f.encoder}{f.ending}"), f) for f in features)
    found = {
        (one.pair, other.pair): (f"{one.dataset}-{one.encoder}{one.ending}", one, other)
        for _, one, other in twice[::-1]
    }
    return list(found.values())[::-1]


def _made(features: Store, name: str) -> set[tuple[str, str]]:
    """Dataset and encoder of all feature folders of a name."""
    found = set()
    for folder in features.folders():
        if re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", folder, re.IGNORECASE):
            manifest = usable_document(features.child(folder), "manifest.json", FeatureManifest)
            found |= {(manifest.dataset, manifest.encoder)} if manifest is not None else set()
    return found


def _twice(named: Iterable[tuple[str, T]]) -> list[tuple[str, T, T]]:
    """Names that were there already, with what had them first and what has them again."""
    found: dict[str, T] = {}
    twice = []
    for name, what in named:
        if name in found:
            twice.append((name, found[name], what))
        found.setdefault(name, what)
    return twice


def _sameness(file: Path) -> Callable[[str], str]:
    """What a name is on the disk of a file: two that are equal under it are one."""
    return str.casefold if _ignores_case(file) else str


def _ignores_case(file: Path) -> bool:
    """Whether a file is found by its name in capitals, too."""
    try:
        return file.with_name(file.name.upper()).samefile(file)
    except OSError:
        return False
