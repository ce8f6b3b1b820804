"""What a probe may be given. Everything that would make a score meaningless is said before anything is fitted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.class_checks import Side, comparable, places, require_several
from unic_pipe.pipeline.samples.classes import Names, listed_names, named
from unic_pipe.pipeline.workspace.results import no_labels
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.features import Features

UNSEEN = -1


@dataclass(frozen=True)
class Task:
    """A checked benchmark: N training and M test samples of D dimensions, C classes.

    Labels are renumbered 0 to C - 1 in the order of the training set's class numbers; test samples of a class that
    training never shows have the label `UNSEEN`, which nothing predicts.
    """

    train_ND: NDArray[np.float32]
    train_labels_N: NDArray[np.int64]
    train_names: tuple[str, ...]
    """Names of the classes 0 to C - 1; a number where the training set has no names."""
    test_MD: NDArray[np.float32]
    test_labels_M: NDArray[np.int64]
    test_classes_M: NDArray[np.int64]
    """The dataset's own class numbers of the test samples, by which per-class accuracy is averaged."""
    test_names: Names
    """The test set's class names in the order of those numbers, where it has names."""
    classes: int
    remarks: tuple[str, ...]
    """What a reader of the scores has to know, a sentence each."""
    test_rows_M: NDArray[np.int64] | None = None
    """Row numbers of the test samples in their dataset, where they are known."""
    counts_as_C: NDArray[np.int64] | None = None
    """In a test with another benchmark's probe, the test class that each class counts as, -1 if it is not asked; test
    labels then are the test set's own class numbers."""

    @property
    def sizes(self) -> dict[str, Scalar]:
        """What every result notes."""
        return {"train_samples": len(self.train_ND), "test_samples": len(self.test_MD), "classes": self.classes}


def check_task(train: Features, test: Features, asked: Sequence[int] | None = None) -> Task:
    """Check both sides of a benchmark and renumber the labels.

    `asked`: for each class number of the training set the test set's class that it counts as, or -1; None: classes are
    matched by name (`match_classes`).
    Raises UserError: nothing to score, labels missing, a single class, sides that do not fit, features not finite.
    """
    for side in (train, test):
        check_side(side)
    if train.x_ND.shape[1] != test.x_ND.shape[1]:
        raise UserError(
            f"Features of {train.name} have {train.x_ND.shape[1]} dimensions, those of {test.name} "
            f"{test.x_ND.shape[1]}: they come from different encoders."
        )
    sides = (
        Side(train.name, train.classes, np.unique(train.labels_N)),
        Side(test.name, test.classes, np.unique(test.labels_N)),
    )
    require_several(sides[0])
    classes = sides[0].numbers_C
    counts_as_C = None
    if asked is None:
        test_labels, said = _matched(train, test, sides)
    else:
        if len(asked) <= int(classes[-1]):
            raise UserError(
                f"Dataset {train.name} has the class {classes[-1]}, but names only {len(asked)} classes.",
                "Index it again, or check its class numbers.",
            )
        counts_as_C = np.asarray(asked, np.int64)[classes]
        test_labels = np.where(np.isin(test.labels_N, counts_as_C), test.labels_N, UNSEEN).astype(np.int64)
        said = _unseen(test, test_labels)
    return Task(
        train_ND=train.x_ND,
        train_labels_N=np.searchsorted(classes, train.labels_N).astype(np.int64),
        train_names=named(train.classes, classes.tolist()),
        test_MD=test.x_ND,
        test_labels_M=test_labels,
        test_classes_M=test.labels_N,
        test_names=test.classes,
        classes=len(classes),
        remarks=(*said, *train.remarks, *test.remarks),
        test_rows_M=test.rows_N,
        counts_as_C=counts_as_C,
    )


def _matched(train: Features, test: Features, sides: tuple[Side, Side]) -> tuple[NDArray[np.int64], list[str]]:
    """Test labels (M,) as places among the training set's classes, and what there is to say about them."""
    matched, classes = comparable(*sides), sides[0].numbers_C
    said = _as_places(*sides) if matched.how == "places" else _counted(train, test, matched.how)
    wanted_M = matched.in_training(test.labels_N)
    found = np.searchsorted(classes, wanted_M).clip(max=len(classes) - 1)
    found_M: NDArray[np.int64] = np.where(classes[found] == wanted_M, found, UNSEEN).astype(np.int64)
    return found_M, [*said, *_unseen(test, found_M), *_not_asked(train, test, classes, found_M)]


def _as_places(train: Side, test: Side) -> list[str]:
    """What to say where one side has class names and the other numbers, which are then places among the names."""
    names, numbered, numbers = places(train, test)
    first, last = named(names.classes, (int(numbers[0]), int(numbers[-1])))
    taken = f"The class numbers of {numbered.name} are taken as places among the sorted class names of {names.name}"
    return [f"{taken}: {numbers[0]} is {first}, {numbers[-1]} is {last}."]


def check_side(side: Features) -> None:
    """Refuse a dataset that cannot be scored.
    Raises UserError: no usable sample, labels missing, features not finite."""
    if not len(side.x_ND):
        raise UserError(
            f"Dataset {side.name} has no usable samples"
            + (f" ({side.left_out} of {side.left_out} rows could not be used)." if side.left_out else "."),
            "The ledger in its feature folder names each unusable row and why.",
        )
    missing = int((side.labels_N < 0).sum())
    if missing:
        raise no_labels(side.name, missing, len(side.labels_N))
    finite = np.asarray(np.isfinite(side.x_ND).all(axis=1))
    if not finite.all():
        raise UserError(
            f"Dataset {side.name}: features of {int((~finite).sum()):,} of {len(finite):,} samples are NaN or infinite.",
            "The encoder overflows or its weights are damaged: try compute.dtype float32, then unic-pipe extract.",
        )


def _counted(train: Features, test: Features, how: str) -> list[str]:
    """What to say where one side's class numbers may count from 1 and the other's from 0."""
    starts = {side.name: int(side.labels_N.min()) for side in (train, test)}
    if how != "numbers" or set(starts.values()) != {0, 1}:
        return []
    later = max(starts, key=lambda name: starts[name])
    setting = f"samples.datasets.{later}.first_class: 1"
    return [f"The class numbers of {later} begin at 1, those of the other side at 0: if they count from 1, {setting}."]


def _unseen(test: Features, test_labels_M: NDArray[np.int64]) -> list[str]:
    """Test classes without a counterpart: their samples stay in the score, which then never flatters."""
    unseen = test.labels_N[test_labels_M == UNSEEN]
    if not len(unseen):
        return []
    numbers = np.unique(unseen)
    classes = "1 class" if len(numbers) == 1 else f"{len(numbers)} classes"
    samples = f"{len(unseen):,} of {len(test_labels_M):,} samples of {test.name}"
    most = f"so {100 * (1 - len(unseen) / len(test_labels_M)):.1f} % is the most that can be right"
    names = _some(test.classes, numbers)
    return [f"{samples} belong to {classes} that training never shows ({names}): counted as wrong, {most}."]


def _not_asked(
    train: Features, test: Features, classes: NDArray[np.int64], test_labels_M: NDArray[np.int64]
) -> list[str]:
    """Training classes of which the test set has no sample."""
    missing = np.setdiff1d(np.arange(len(classes)), test_labels_M)
    if not len(missing):
        return []
    have, names = "has" if len(missing) == 1 else "have", _some(train.classes, classes[missing])
    return [f"{len(missing)} of {len(classes)} classes {have} no sample in {test.name} ({names})."]


def _some(classes: Names, numbers: NDArray[np.int64]) -> str:
    return listed_names(named(classes, map(int, numbers)))
