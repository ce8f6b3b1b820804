"""PHI-S: standardization by one rotation and one scale (arXiv 2410.01680, and RADIO's code).

With the covariance U diag(e) Uᵀ (e ascending, negative ones set to 0), φ = 1 / sqrt(mean e) and an orthogonal H whose
entries all have the same size, a target is y = W (x - mean) with W = φ H Uᵀ. Every dimension of y has variance 1, every
error keeps its meaning (distances are φ times those of x), and the inverse is Wᵀ / φ². It does not whiten: dimensions
of y stay correlated. Mean squared error and cosine do not see the rotation; smooth-L1, the heads' initialisation and
AdamW do.

Legend: N tokens, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.hadamard import Doubles, spreading
from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True, eq=False)
class PhiS:
    """A standardization of tokens, all in float64."""

    mean_D: Doubles
    matrix_DD: Doubles
    """W: rows are dimensions of the target."""
    phi: float

    def __call__(self, x_xD: NDArray[Any]) -> Doubles:
        """Targets (..., D) of features (..., D)."""
        y_xD: Doubles = (x_xD - self.mean_D) @ self.matrix_DD.T
        return y_xD


def phi_s(mean_D: Doubles, covariance_DD: Doubles) -> PhiS:
    """The standardization of tokens with these moments, float64.

    The sign of an eigenvector is arbitrary; here its largest entry is positive.

    Raises:
        UserError: the tokens are all the same.
    """
    e_D, u_DD = np.linalg.eigh(covariance_DD)
    largest_D = np.abs(u_DD).argmax(axis=0)
    u_DD = u_DD * np.where(u_DD[largest_D, np.arange(len(u_DD))] < 0, -1.0, 1.0)
    return rotated(mean_D, e_D, u_DD, spreading(len(mean_D)))


def rotated(mean_D: Doubles, eigenvalues_D: Doubles, eigenvectors_DD: Doubles, spreading_DD: Doubles) -> PhiS:
    """The standardization by a given eigenbasis (columns) and a given H.

    Raises:
        UserError: no eigenvalue is positive.
    """
    variance = np.maximum(eigenvalues_D, 0.0).mean()
    if not variance > 0:
        raise UserError("All tokens are the same, so PHI-S has no scale.", "Set loss.standardize to exact.")
    phi = float(1.0 / np.sqrt(variance))
    return PhiS(mean_D, phi * spreading_DD @ eigenvectors_DD.T, phi)
