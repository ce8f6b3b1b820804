"""How far a teacher's vectors are spread about their mean direction, for the angle loss: two passes, in float64.

mean direction μ = unit(mean of unit(v)); dispersion² = mean of angle(v, μ)², in radians.

Legend: M vectors of a piece, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.moments import Doubles


class MeanDirection:
    """The first pass."""

    def __init__(self, dims: int) -> None:
        self.sum_D = np.zeros(dims)

    def add(self, values_MD: NDArray[Any]) -> None:
        """Count a piece."""
        self.sum_D += units(values_MD).sum(axis=0)

    def direction(self) -> Doubles:
        """μ, a unit vector; zeros where the vectors cancel out."""
        return units(self.sum_D)


class Dispersion:
    """The second pass: mean squared angle to a direction."""

    def __init__(self, direction_D: Doubles) -> None:
        self.direction_D, self.count, self.sum = direction_D, 0, 0.0

    def add(self, values_MD: NDArray[Any]) -> None:
        """Count a piece."""
        unit_MD = units(values_MD)
        # acos loses half of the digits near 0.
        apart_M = np.linalg.norm(unit_MD - self.direction_D, axis=-1)
        together_M = np.linalg.norm(unit_MD + self.direction_D, axis=-1)
        self.sum += float(np.square(2 * np.arctan2(apart_M, together_M)).sum())
        self.count += len(values_MD)

    def squared(self) -> float:
        """dispersion², in radians²."""
        return self.sum / self.count


def units(values_xD: NDArray[Any]) -> Doubles:
    """Vectors (..., D) scaled to length 1, float64; zeros stay zeros."""
    values_xD = values_xD.astype(np.float64)
    norm_x1 = np.linalg.norm(values_xD, axis=-1, keepdims=True)
    unit_xD: Doubles = values_xD / np.where(norm_x1 > 0, norm_x1, 1.0)
    return unit_xD
