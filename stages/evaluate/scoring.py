"""The validation split and the scores that every probe shares. N training samples, M test samples, C classes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.classes import Names, listed_names, named
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.evaluations import ClassAccuracy


def validation_split(labels_N: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of the validation samples: `fraction` of each class, at random.

    A class of two samples or more has at least one on each side; a class of one stays in training.
    Raises UserError: no class has two samples.
    """
    generator = np.random.default_rng(seed)
    validation_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        wanted = min(max(1, round(fraction * len(members))), len(members) - 1)
        validation_N[generator.permutation(members)[:wanted]] = True
    if not validation_N.any():
        raise UserError(
            f"Every one of the {len(labels_N)} classes of the training set has a single sample: nothing can be chosen.",
            "Add samples, or evaluate with k-NN alone: evaluate.probes: [knn]",
        )
    return validation_N


def without_validation(labels_N: NDArray[np.int64], names_C: Sequence[str]) -> tuple[str, ...]:
    """Says which classes `validation_split` leaves without a validation sample: those that have a single one."""
    single = np.flatnonzero(np.bincount(labels_N, minlength=len(names_C)) == 1).tolist()
    if not single:
        return ()
    have, names = "has" if len(single) == 1 else "have", listed_names([names_C[c] for c in single])
    who = f"{len(single)} of {len(names_C)} classes {have} a single training sample ({names})"
    return (f"{who}: none to validate on, so the search chose by the others.",)


def middle_of_best(scores: Mapping[tuple[float, ...], float]) -> tuple[float, ...]:
    """Of the settings (tuples of positive numbers) that score best, the one in the middle.

    Few validation samples let whole ranges score equally, and their ends are the settings that are next to worse ones.
    The middle has the least sum of distances to the tied ones, on logarithmic scales; of two such the larger is taken.
    """
    top = max(scores.values())
    tied = [setting for setting, score in scores.items() if score == top]

    def distance(setting: tuple[float, ...]) -> float:
        pairs = ((a, b) for other in tied for a, b in zip(setting, other, strict=True))
        return round(sum(abs(math.log(a / b)) for a, b in pairs), 9)

    return min(sorted(tied, reverse=True), key=distance)


def class_scores(
    predicted_M: NDArray[np.int64], labels_M: NDArray[np.int64], classes_M: NDArray[np.int64], names: Names = None
) -> ClassAccuracy:
    """Accuracy of each of the test set's classes (`classes_M`: the dataset's own numbers; `names`: in their order)."""
    numbers, inverse_M = np.unique(classes_M, return_inverse=True)
    samples = np.bincount(inverse_M)
    right = np.bincount(inverse_M, weights=predicted_M == labels_M)
    return ClassAccuracy(
        classes=tuple(numbers.tolist()),
        samples=tuple(samples.tolist()),
        accuracy=tuple((right / samples).tolist()),
        names=named(names, numbers.tolist()),
    )


def accuracy(
    predicted_M: NDArray[np.int64], labels_M: NDArray[np.int64], classes_M: NDArray[np.int64]
) -> dict[str, float]:
    """`top1`, and `per_class`: the mean over the test set's classes (`classes_M`) of each one's accuracy."""
    each = class_scores(predicted_M, labels_M, classes_M)
    return {"top1": float(np.mean(predicted_M == labels_M)), "per_class": float(np.mean(each.accuracy))}
