"""Images and labels of one split of a benchmark, in the order that rows have."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
