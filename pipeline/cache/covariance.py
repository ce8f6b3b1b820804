"""Exact covariance of tokens that come piece by piece, in float64.

Legend: M tokens of a piece, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.moments import Doubles


class Comoments:
    """Count, mean and sum of products of deviations, by merging pieces (Chan, Golub and LeVeque, 1979)."""

    def __init__(self, dims: int) -> None:
        self.count, self.mean_D, self.sum_DD = 0, np.zeros(dims), np.zeros((dims, dims))

    def add(self, values_MD: NDArray[Any]) -> None:
        """Count a piece."""
        if not len(values_MD):
            return
        values_MD = values_MD.astype(np.float64)
        mean_D = values_MD.mean(axis=0)
        values_MD -= mean_D
        count, delta_D = self.count + len(values_MD), mean_D - self.mean_D
        self.sum_DD += values_MD.T @ values_MD
        self.sum_DD += np.outer(delta_D, delta_D) * (self.count * (len(values_MD) / count))
        self.mean_D = self.mean_D + delta_D * (len(values_MD) / count)
        self.count = count

    def covariance(self) -> Doubles:
        """(D, D): over count, like the variances by which targets are standardized (RADIO's are over count - 1)."""
        return self.sum_DD / max(self.count, 1)
