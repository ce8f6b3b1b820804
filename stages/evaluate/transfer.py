"""Testing a fitted probe on other data than its benchmark's own, where only some of its classes are asked for.

Shapes: M test samples, D dimensions, C classes of the probe.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_ROWS = 4096
"""Test samples at a time, so that the logits of 1,000 classes stay small."""


class Scorer(Protocol):
    """A fitted linear probe."""

    def scores(self, x_MD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (M, C), up to a constant for each sample."""


def predict_among(probe: Scorer, x_MD: NDArray[np.float32], counts_as_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """The test class (M,) of the likeliest class among those that are asked (`counts_as_C` >= 0)."""
    asked = np.flatnonzero(counts_as_C >= 0)
    predicted = [
        counts_as_C[asked[probe.scores(x_MD[at : at + _ROWS])[:, asked].argmax(axis=1)]]
        for at in range(0, len(x_MD), _ROWS)
    ]
    return np.concatenate(predicted)
