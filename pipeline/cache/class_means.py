"""Mean of a teacher's vectors by class, for losses against class centres (ND, arXiv 2305.17007), in float64.

Legend: M vectors of a piece, C classes, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.moments import Doubles


class ClassMeans:
    """Sums and counts of every class, piece by piece."""

    def __init__(self, classes: int, dims: int, decimals: int | None = None) -> None:
        """`decimals`: round vectors and means to so many, as the official code of ND does (4)."""
        self.sum_CD, self.count_C, self.decimals = np.zeros((classes, dims)), np.zeros(classes, np.int64), decimals

    def add(self, values_MD: NDArray[Any], labels_M: NDArray[np.int64]) -> None:
        """Count a piece; labels are 0 … C - 1."""
        np.add.at(self.sum_CD, labels_M, self._rounded(values_MD.astype(np.float64)))
        np.add.at(self.count_C, labels_M, 1)

    def means(self) -> Doubles:
        """(C, D); zeros where a class has no vectors (see `count_C`)."""
        return self._rounded(self.sum_CD / np.maximum(self.count_C, 1)[:, None])

    def _rounded(self, values: Doubles) -> Doubles:
        return values if self.decimals is None else np.round(values, self.decimals)
