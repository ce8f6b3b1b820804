"""Linear probe: L2-regularised multinomial logistic regression, with a validation search over C.

Shapes: N training samples, M test samples, D dimensions, C classes. Protocol for small datasets of t-ReX and UNIC:
raw features, L-BFGS, C chosen on 20 % of each class of the training set, refit on all of it.

Raw features mean that no dimension is rescaled against another. Subtracting the mean and dividing everything by one
number, as done here, keeps the problem the same (the intercept is not penalised, and C is rescaled to match), but
L-BFGS then needs a quarter of the iterations, and its stopping rule does not depend on the features' unit.

Fits run in float64 on one thread: sums then do not depend on the number of cores, the solver reaches its tolerance
instead of stalling at float32's rounding, and OpenBLAS and OpenMP threads do not spin against each other, which cost
far more than two cores gain.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from schemas.errors import UserError

MAX_ITERATIONS = 1000
TOLERANCE, SEARCH_TOLERANCE = 1e-5, 1e-4
"""Largest component of the mean loss's gradient, on features of unit root-mean-square deviation. Ranking values of C
needs less than the final fit, and takes half the time so."""


@dataclass(frozen=True)
class Search:
    """Outcome of the search over C."""

    c: float
    validation_top1: float
    converged: bool
    """Whether every fit of the search reached its tolerance."""


class Probe:
    """A logistic regression on features of one scale; `fit` again with another C starts from the last solution."""

    def __init__(self, x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], tolerance: float = TOLERANCE) -> None:
        self._mean_D = x_ND.mean(axis=0, dtype=np.float64)
        centred_ND = x_ND - self._mean_D
        self._scale = float(np.sqrt(np.mean(np.square(centred_ND)))) or 1.0
        centred_ND /= self._scale
        self._x_ND, self._labels_N = centred_ND, labels_N
        self._model = LogisticRegression(
            solver="lbfgs", tol=tolerance, max_iter=MAX_ITERATIONS, warm_start=True, random_state=0
        )
        self.converged = True

    def fit(self, c: float) -> None:
        """Fit with inverse regularisation strength `c` (of the features as they came)."""
        self._model.C = c * self._scale**2
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            self._model.fit(self._x_ND, self._labels_N)
        stalled = any(issubclass(w.category, ConvergenceWarning) for w in caught)
        self.converged = not stalled and int(self._model.n_iter_.max()) < MAX_ITERATIONS

    def predict(self, x_MD: NDArray[np.float32]) -> NDArray[np.int64]:
        """Predicted labels (M,)."""
        with threadpool_limits(1):
            predicted: NDArray[np.int64] = self._model.predict((x_MD - self._mean_D) / self._scale)
        return predicted

    def scores(self, x_MD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (M, C), up to a constant for each sample."""
        with threadpool_limits(1):
            logits: NDArray[np.float64] = self._model.decision_function((x_MD - self._mean_D) / self._scale)
        return logits if logits.ndim == 2 else np.stack([-logits, logits], axis=1)


def search(
    x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], c_values: Sequence[float], fraction: float, seed: int
) -> Search:
    """Choose C by top-1 accuracy on a part of the training set; of equal ones the first in `c_values`.

    It is given the training set and nothing else.
    """
    validation_N = validation_split(labels_N, fraction, seed)
    probe = Probe(x_ND[~validation_N], labels_N[~validation_N], SEARCH_TOLERANCE)
    held_x, held_labels = x_ND[validation_N], labels_N[validation_N]
    best_c, best, converged = c_values[0], -1.0, True
    for c in c_values:
        probe.fit(c)
        converged = converged and probe.converged
        top1 = float(np.mean(probe.predict(held_x) == held_labels))
        if top1 > best:
            best_c, best = c, top1
    return Search(best_c, best, converged)


def validation_split(labels_N: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of the validation samples: `fraction` of each class, at random.

    A class of two samples or more has at least one on each side; a class of one stays in training.

    Raises:
        UserError: no class has two samples.
    """
    generator = np.random.default_rng(seed)
    validation_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        wanted = min(max(1, round(fraction * len(members))), len(members) - 1)
        validation_N[generator.permutation(members)[:wanted]] = True
    if not validation_N.any():
        raise UserError(
            f"Every one of the {len(labels_N)} classes of the training set has a single sample: C cannot be chosen.",
            "Add samples, or evaluate with k-NN alone: evaluate.probes: [knn]",
        )
    return validation_N


def accuracy(
    predicted_M: NDArray[np.int64], labels_M: NDArray[np.int64], classes_M: NDArray[np.int64]
) -> dict[str, float]:
    """`top1`, and `per_class`: the mean over the test set's classes (`classes_M`) of each one's accuracy."""
    right_M = predicted_M == labels_M
    _, inverse_M = np.unique(classes_M, return_inverse=True)
    per_class_C = np.bincount(inverse_M, weights=right_M) / np.bincount(inverse_M)
    return {"top1": float(right_M.mean()), "per_class": float(per_class_C.mean())}
