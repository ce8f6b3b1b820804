"""Reading the list of images and labels of one split of a benchmark, checked before anything is hashed."""

import functools
import os
from collections.abc import Sequence

from unic_pipe.pipeline.benchmarks.locate import Listing, Place
from unic_pipe.pipeline.benchmarks.readers import READERS
from unic_pipe.schemas.errors import UserError


def listing(place: Place) -> Listing:
    """Read a split's own annotation files.
    Raises UserError: files missing or damaged, another number of images than the benchmark has, images that are not
    there."""
    place.require()
    return _read(place, place.signature())


@functools.lru_cache(maxsize=2)
def _read(place: Place, signature: str) -> Listing:
    """Kept, because an index needs it twice, and iNaturalist's takes seconds to read."""
    del signature
    samples = READERS[place.card.reader](place)
    _check_count(place, len(samples.files))
    _check_files(place, samples.files)
    return samples


def _check_count(place: Place, found: int) -> None:
    expected = place.card.count(place.split)
    if found != expected:
        other = next((c for c in (place.card.train, place.card.test) if c == found), None)
        why = "that is the other split" if other is not None else "half downloaded or unpacked, or another version"
        raise UserError(
            f"benchmark {place.name}: its {place.split} set has {expected:,} images, {place.folder} has {found:,}: {why}.",
            f"Get {place.card.get} again ({place.card.source}). A part of it can be a benchmark under another name: "
            "evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
        )


def _check_files(place: Place, files: Sequence[str]) -> None:
    """Every listed image has to be there: one listing per folder."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    missing = []
    for folder, names in by_folder.items():
        try:
            present = {entry.name for entry in os.scandir(place.folder / folder)}
        except OSError:
            present = set()
        missing += [f"{folder}/{name}" for name in names if name not in present]
    if missing:
        raise UserError(
            f"benchmark {place.name}: {len(missing):,} of the {len(files):,} images that its {place.split} lists name are "
            f"not in {place.folder} (first: {missing[0]}): half downloaded or unpacked?",
            f"Get {place.card.get} again ({place.card.source}).",
        )
