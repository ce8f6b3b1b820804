"""One fit of L2-regularised multinomial logistic regression by L-BFGS, as the trial-by-trial protocol makes many of.

Shapes: N training samples, M test samples, D dimensions, C classes. Protocol for small datasets of t-ReX and UNIC:
raw features, L-BFGS (`trials` chooses C, `paths` does the same faster).

Raw features mean that no dimension is rescaled against another. Subtracting the mean and dividing everything by one
number, as done here, keeps the problem the same (the intercept is not penalised, and C is rescaled to match), but
L-BFGS then needs a quarter of the iterations, and its stopping rule does not depend on the features' unit.

Fits run in float64 on one thread: sums then do not depend on the number of cores, the solver reaches its tolerance
instead of stalling at float32's rounding, and OpenBLAS and OpenMP threads do not spin against each other, which cost
far more than two cores gain.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

MAX_ITERATIONS = 1000
TOLERANCE, SEARCH_TOLERANCE = 1e-5, 1e-4
"""Largest component of the mean loss's gradient, on features of unit root-mean-square deviation. Ranking values of C
needs less than the final fit, and takes half the time so."""


class Probe:
    """A logistic regression on features of one scale; each `fit` starts from zero."""

    def __init__(
        self,
        x_ND: NDArray[np.float32],
        labels_N: NDArray[np.int64],
        tolerance: float = TOLERANCE,
        iterations: int = MAX_ITERATIONS,
    ) -> None:
        self._mean_D = x_ND.mean(axis=0, dtype=np.float64)
        centred_ND = x_ND - self._mean_D
        self._scale = float(np.sqrt(np.mean(np.square(centred_ND)))) or 1.0
        centred_ND /= self._scale
        self._x_ND, self._labels_N = centred_ND, labels_N
        self._model = LogisticRegression(solver="lbfgs", tol=tolerance, max_iter=iterations, random_state=0)
        self.converged = True

    def fit(self, c: float) -> None:
        """Fit with inverse regularisation strength `c` (of the features as they came)."""
        self._model.C = c * self._scale**2
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            self._model.fit(self._x_ND, self._labels_N)
        stalled = any(issubclass(w.category, ConvergenceWarning) for w in caught)
        self.converged = not stalled and int(self._model.n_iter_.max()) < self._model.max_iter

    def predict(self, x_MD: NDArray[np.float32]) -> NDArray[np.int64]:
        """Predicted labels (M,)."""
        with threadpool_limits(1):
            predicted: NDArray[np.int64] = self._model.predict((x_MD - self._mean_D) / self._scale)
        return predicted

    def scores(self, x_MD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (M, C), up to a constant for each sample."""
        with threadpool_limits(1):
            logits: NDArray[np.float64] = self._model.decision_function((x_MD - self._mean_D) / self._scale)
        return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)
