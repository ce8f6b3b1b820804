"""What indexing says of a dataset at its end: what it left out, and what may not have been meant so."""

from collections.abc import Sequence

import numpy as np

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.files import image_endings
from unic_pipe.pipeline.samples.folders import ImageFolder
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS
from unic_pipe.pipeline.samples.left_out import LeftOut
from unic_pipe.pipeline.samples.splits import SPLITS
from unic_pipe.pipeline.samples.undertaking import NEW_NAME, Work


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
        say(f"dataset {name}: {alike[0]!r} and {alike[1]!r} are two classes, which differ in capitals or spaces alone.")
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
        before = seen.setdefault(" ".join(name.casefold().split()), name)
        if before != name:
            return before, name
    return None
