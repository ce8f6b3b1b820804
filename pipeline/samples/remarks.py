"""What indexing says of a dataset at its end: what it left out, and what may not have been meant so."""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from unic_pipe.pipeline.samples.classes import class_key
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.files import image_endings
from unic_pipe.pipeline.samples.folders import ImageFolder
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS
from unic_pipe.pipeline.samples.left_out import LeftOut, shown
from unic_pipe.pipeline.samples.splits import SPLITS
from unic_pipe.pipeline.samples.table import hashes_of
from unic_pipe.pipeline.samples.undertaking import NEW_NAME, Work

_AT_ONCE = 1 << 20


def say_left(work: Work, left: LeftOut) -> None:
    """One line for each kind of thing that is not used."""
    for line in left.lines():
        work.progress.say(f"dataset {work.name}: {line}.")
    later = {f".{ending}" for ending in image_endings() - image_endings(work.rule)} & left.endings()
    if later and work.rule.image is None:
        work.progress.say(
            f"dataset {work.name}: {' '.join(sorted(later))} are read in new indexes; this one keeps its rows. "
            f"To use them: {NEW_NAME}"
        )


def say_remarks(work: Work, dataset: Dataset, permuted: bool, unlabelled: int) -> None:
    """Remarks on order, labels and classes. `permuted`: rows were put in a random order now; `unlabelled`: how many have no
    label."""
    say, name, rows = work.progress.say, work.name, dataset.manifest.rows
    if permuted:
        say(
            f"dataset {name}: sorted by class or by name; its rows are put in a fixed random order, so that the first "
            "blocks are a random sample."
        )
    if 0 < unlabelled < rows:
        say(f"dataset {name}: {unlabelled:,} of {rows:,} rows have no label.")
    if work.label_source.startswith(f"{OLD_FOLDERS}:one"):
        (folder,) = work.folders
        below = sorted({path.partition("/")[0] for path in folder.names if "/" in path})
        classes = f" Are the folders in it the classes ({below[0]}, ...)? `source: {folder.path}`" if below[1:] else ""
        say(f"dataset {name}: a single folder is no class, so its images have no labels.{classes}")
    elif splits := _splits_below(work.folders):
        say(
            f"dataset {name}: class folders hold the folders {' and '.join(splits)}, which are all read as one dataset."
        )
    alike = _alike(dataset.manifest.classes or ())
    if alike:
        one, other = map(ascii, alike)
        say(
            f"dataset {name}: {one} and {other} are two classes, which differ in capitals, spaces, leading zeros or in "
            "characters that look the same."
        )
    twice, first_two = _in_two_classes(dataset)
    if twice:
        some = "1 image is" if twice == 1 else f"{twice:,} images are"
        say(f"dataset {name}: {some} in two classes (first: {' and '.join(map(shown, first_two))}).")
    unused = "labels" if work.source.layout == "tars" else "label_field"
    if getattr(work.config, unused) is not None:
        say(f"dataset {name}: `{unused}` is not used: it is for {'flat folders' if unused == 'labels' else 'tars'}.")
    if dataset.manifest.classes is not None or unlabelled == rows:
        return
    numbers = np.unique(dataset.labels())
    first, last, shift = int(numbers[numbers >= 0][0]), int(numbers[-1]), work.config.first_class
    if shift:
        say(f"dataset {name}: classes count from {shift}, so {shift} is subtracted: {first:,} to {last:,}.")
    elif first == 1:
        say(
            f"dataset {name}: class numbers {first:,} to {last:,} are kept as they are. If they count from 1 where other "
            f"datasets count from 0: samples.datasets.{name}.first_class: 1"
        )


def _splits_below(folders: Sequence[ImageFolder]) -> list[str]:
    """Names of splits in class folders, where there are two or more."""
    found = {name.partition("/")[0] for folder in folders for name in folder.names if "/" in name}
    splits = sorted(name for name in found if name.lower() in SPLITS)
    return splits if len(splits) > 1 else []


def _alike(classes: Sequence[str]) -> tuple[str, str] | None:
    """The first two names that were probably meant to be one."""
    seen: dict[str, str] = {}
    for name in classes:
        plain = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        before = seen.setdefault(class_key(" ".join(plain.casefold().split())), name)
        if before != name:
            return before, name
    return None


def _in_two_classes(dataset: Dataset) -> tuple[int, tuple[str, str]]:
    """How many pairs of equal images have unequal labels, and the keys of the first."""
    # Two halves of a hash, in one piece each: sorting would copy what is not.
    low_N, high_N = np.empty((2, dataset.manifest.rows), "<u8")
    start = 0
    for part in (part for table in dataset.segments for part in table.parts("xxh3")):
        end = start + len(part)
        low_N[start:end], high_N[start:end] = hashes_of(part).view("<u8").T
        start = end
    labels_N = np.concatenate([table.labels for table in dataset.segments])
    count, first = 0, ("", "")
    # A part of all hashes at a time: of millions of rows an order is as large as the hashes, and sorting takes it twice.
    parts = -(-len(high_N) // _AT_ONCE)
    bounds = [(part << 64) // parts for part in range(parts)] + [1 << 64]
    for bound, next_bound in pairwise(bounds):
        rows_N = np.flatnonzero((high_N >= np.uint64(bound)) & (high_N <= np.uint64(next_bound - 1)))
        order_N = rows_N[np.lexsort((labels_N[rows_N], low_N[rows_N], high_N[rows_N]))]
        one, other = order_N[:-1], order_N[1:]
        labelled = (labels_N[one] >= 0) & (labels_N[one] != labels_N[other])
        found = np.flatnonzero((low_N[one] == low_N[other]) & (high_N[one] == high_N[other]) & labelled)
        if len(found) and not count:
            numbers_N = dataset.rows()
            pair = (int(numbers_N[order_N[found[0] + step]]) for step in (0, 1))
            first = dataset.key(next(pair)), dataset.key(next(pair))
        count += len(found)
    return count, first
