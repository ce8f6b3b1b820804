"""Finding a benchmark's folder, by what has to be in it (nothing is read here, only names are looked at); and the images and
labels of one split, in the order that rows have."""

import fnmatch
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unic_pipe.pipeline.storage import fast_hash
from unic_pipe.schemas.benchmarks import BenchmarkCard, Split, cards
from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True)
class Listing:
    """N images, in the order of their paths."""

    files: tuple[str, ...]
    """Paths relative to the benchmark's folder, with `/`."""
    labels: tuple[int, ...]
    """Class numbers from 0."""
    classes: tuple[str, ...]
    """Names in the order of the numbers; for tests with IN-1K's probe the WordNet ids that a class stands for, joined
    by `+`."""


def made(folder: Path, pairs: Sequence[tuple[str, int]], classes: Sequence[str]) -> Listing:
    """A listing of (path, class number) pairs, sorted by path. Raises UserError: an image is listed twice."""
    ordered = sorted(pairs)
    twice = next((a[0] for a, b in itertools.pairwise(ordered) if a[0] == b[0]), None)
    if twice is not None:
        raise UserError(f"{folder}: its lists name {twice} twice.", "Unpack the annotation files again.")
    return Listing(tuple(path for path, _ in ordered), tuple(label for _, label in ordered), tuple(classes))


@dataclass(frozen=True)
class Place:
    """Where a split was looked for."""

    name: str
    split: Split
    folder: Path
    """Where it is, or where most of it is; where it was looked for if nothing is there."""
    missing: tuple[str, ...]
    """What is not there; empty when everything is."""

    @property
    def card(self) -> BenchmarkCard:
        """The registry's entry."""
        return cards()[self.name]

    @property
    def lacks(self) -> str:
        """What is not there, for people."""
        shown = ", ".join(need.replace("|", " or ") for need in self.missing)
        return shown.replace("n????????", "WNID/ folders").replace("[0-9]*", "folders 0/ to 999/")

    def require(self) -> Path:
        """The folder. Raises UserError: which files are missing, where they belong, where to get them."""
        if not self.missing:
            return self.folder
        raise UserError(
            f"benchmark {self.name}: its {self.split} set is not here; not in {self.folder}: {self.lacks}.",
            f"Get {self.card.get} ({self.card.source}). Set evaluate.benchmarks.{self.name}.root to its folder, or "
            f"evaluate.root to the one that holds it as {' or '.join(dict.fromkeys((self.name, *self.card.folders)))}.",
        )

    def signature(self) -> str:
        """XXH3-128 over names and sizes of the annotation files: other annotations are another list of images."""
        parts = [f"{need}\0{path.stat().st_size}" for need in self.needs if (path := self._file(need)) is not None]
        return fast_hash("\0".join(parts).encode())

    @property
    def needs(self) -> tuple[str, ...]:
        """What has to be there, as the registry lists it."""
        return self.card.needs(self.split)

    def _file(self, need: str) -> Path | None:
        found = (_found(self.folder, option) for option in need.split("|"))
        path = next((path for path in found if path is not None), None)
        return path if path is not None and path.is_file() else None


def split_of(reader: str) -> tuple[str, Split]:
    """Benchmark and split of a `DatasetConfig.reader`."""
    name, _, split = reader.partition("/")
    return name, "train" if split == "train" else "test"


def locate(name: str, split: Split, base: Path) -> Place:
    """The folder of a benchmark: `base`, or one below it that has a usual name (its own, torchvision's, the archive's).

    The first that has everything; if none has, the one that has most.
    """
    card = cards()[name]
    needs = card.needs(split)
    best = Place(name, split, base, needs)
    for folder in dict.fromkeys([base, *(start / f for start in (base, base / name) for f in ("", *card.folders))]):
        if not folder.is_dir():
            continue
        missing = tuple(need for need in needs if not any(_found(folder, option) for option in need.split("|")))
        if not missing:
            return Place(name, split, folder, ())
        if len(missing) < len(best.missing):
            best = Place(name, split, folder, missing)
    return best


def _found(folder: Path, pattern: str) -> Path | None:
    """The first path that fits; only the last part may be a pattern. A large folder is not read to its end."""
    path = folder / pattern
    if not any(sign in pattern for sign in "*?["):
        return path if path.exists() else None
    try:
        with os.scandir(path.parent) as entries:
            return next((Path(e.path) for e in entries if fnmatch.fnmatchcase(e.name, path.name)), None)
    except OSError:
        return None
