"""What a probe may be given. Everything that would make a score meaningless is said before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.workspace.results import no_labels
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.features import Features

UNSEEN = -1


@dataclass(frozen=True)
class Task:
    """A checked benchmark: N training and M test samples of D dimensions, C classes.

    Labels are renumbered 0 to C - 1 in the order of the dataset's class numbers; test samples of a class that
    training never shows have the label `UNSEEN`, which nothing predicts.
    """

    train_ND: NDArray[np.float32]
    train_labels_N: NDArray[np.int64]
    test_MD: NDArray[np.float32]
    test_labels_M: NDArray[np.int64]
    test_classes_M: NDArray[np.int64]
    """The dataset's own class numbers of the test samples, by which per-class accuracy is averaged."""
    classes: int
    remarks: tuple[str, ...]
    """What a reader of the scores has to know, a sentence each."""
    counts_as_C: NDArray[np.int64] | None = None
    """In a test with another benchmark's probe, the test class that each class counts as, -1 if it is not asked; test
    labels then are the test set's own class numbers."""

    @property
    def sizes(self) -> dict[str, Scalar]:
        """What every result notes."""
        return {"train_samples": len(self.train_ND), "test_samples": len(self.test_MD), "classes": self.classes}


def check_task(train: Features, test: Features, asked: Sequence[int] | None = None) -> Task:
    """Check both sides of a benchmark and renumber the labels.

    `asked`: for each class number of the training set the test set's class that it counts as, or -1; None: the numbers
    are the same.

    Raises:
        UserError: nothing to score, labels missing, a single class, sides that do not fit, features not finite.
    """
    for side in (train, test):
        check_side(side)
    if train.x_ND.shape[1] != test.x_ND.shape[1]:
        raise UserError(
            f"Features of {train.name} have {train.x_ND.shape[1]} dimensions, those of {test.name} "
            f"{test.x_ND.shape[1]}: they come from different encoders."
        )
    classes = np.unique(train.labels_N)
    if len(classes) < 2:
        raise UserError(
            f"Dataset {train.name} has a single class ({classes[0]}): a probe needs at least two.",
            "Use a training set that shows every class; for tars, check the .cls members.",
        )
    counts_as_C = None
    if asked is None:
        test_labels = _renumbered(train, test, classes)
    else:
        if len(asked) <= int(classes[-1]):
            raise UserError(
                f"Dataset {train.name} has the class {classes[-1]}, but names only {len(asked)} classes.",
                "Index it again, or check its class numbers.",
            )
        counts_as_C = np.asarray(asked, np.int64)[classes]
        test_labels = np.where(np.isin(test.labels_N, counts_as_C), test.labels_N, UNSEEN).astype(np.int64)
    return Task(
        train_ND=train.x_ND,
        train_labels_N=np.searchsorted(classes, train.labels_N).astype(np.int64),
        test_MD=test.x_ND,
        test_labels_M=test_labels,
        test_classes_M=test.labels_N,
        classes=len(classes),
        remarks=(*_unseen(test, test_labels), *train.remarks, *test.remarks),
        counts_as_C=counts_as_C,
    )


def _renumbered(train: Features, test: Features, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Test labels (M,) as places in the training set's `classes`."""
    in_test = np.unique(test.labels_N)
    if len(in_test) > len(classes):
        raise UserError(
            f"Test set {test.name} has {len(in_test)} classes, training set {train.name} only {len(classes)}.",
            "Check the benchmark's train and test: are they swapped, or from different datasets?",
        )
    if not np.isin(in_test, classes).any():
        raise UserError(
            f"Test set {test.name} and training set {train.name} have no class in common.",
            "Check that both use the same class numbers.",
        )
    places = np.searchsorted(classes, test.labels_N).clip(max=len(classes) - 1)
    found: NDArray[np.int64] = np.where(classes[places] == test.labels_N, places, UNSEEN).astype(np.int64)
    return found


def check_side(side: Features) -> None:
    """Refuse a dataset that cannot be scored.

    Raises:
        UserError: no usable sample, labels missing, features not finite.
    """
    if not len(side.x_ND):
        raise UserError(
            f"Dataset {side.name} has no usable samples"
            + (f" ({side.left_out} of {side.left_out} rows could not be used)." if side.left_out else "."),
            "The ledger in its feature folder names each unusable row and why.",
        )
    missing = int((side.labels_N < 0).sum())
    if missing == len(side.labels_N):
        raise no_labels(side.name)
    if missing:
        raise UserError(
            f"Dataset {side.name}: {missing:,} of {len(side.labels_N):,} samples have no label.",
            "Label all of them, or leave the others out of the dataset: scores over a part do not compare.",
        )
    finite = np.asarray(np.isfinite(side.x_ND).all(axis=1))
    if not finite.all():
        raise UserError(
            f"Dataset {side.name}: features of {int((~finite).sum()):,} of {len(finite):,} samples are NaN or infinite.",
            "The encoder overflows or its weights are damaged: try compute.dtype float32, then unic-pipe extract.",
        )


def _unseen(test: Features, test_labels_M: NDArray[np.int64]) -> list[str]:
    unseen = test.labels_N[test_labels_M == UNSEEN]
    if not len(unseen):
        return []
    number = len(np.unique(unseen))
    classes = "1 class" if number == 1 else f"{number} classes"
    samples = f"{len(unseen):,} of {len(test_labels_M):,} samples of {test.name}"
    return [f"{samples} belong to {classes} that training never shows: counted as wrong."]
