"""Features as the fast logistic regression takes them: centred, one scale, turned onto their principal axes.

Shapes: N samples, D dimensions, R = min(D, N) axes, padded with a column of ones for the intercept and zeros to a
multiple of 16: A = axes + intercept + padding.

Exact, not an approximation: the intercept is not penalised, so centring changes nothing; one common scale multiplies C
by its square; an L2 penalty does not see a rotation, and directions that no training sample has get no weight. What it
buys is conditioning: on principal axes a diagonal preconditioner knows the data's covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_ROWS = 8192


@dataclass(frozen=True)
class Rotation:
    """x (D) -> ((x - mean) @ axes, 1, 0...). All float64."""

    mean_D: torch.Tensor
    axes_DR: torch.Tensor
    """Orthogonal columns, divided by `scale`."""
    scale: float
    """Root mean square of the centred features: the rotated ones have 1."""

    @property
    def intercept(self) -> int:
        """Place of the column of ones."""
        return self.axes_DR.shape[1]

    @property
    def width(self) -> int:
        """A: axes, intercept, and padding for the matrix products."""
        return -(-(self.intercept + 1) // 16) * 16

    @classmethod
    def of(cls, x_ND: NDArray[np.float32], device: str) -> Rotation:
        """The rotation of a training set; labels have no part in it."""
        x = torch.from_numpy(np.ascontiguousarray(x_ND))
        rows = _slices(len(x))
        mean_D = sum((x[r].to(device).double().sum(0) for r in rows), torch.zeros((), device=device)) / len(x)
        # Any orthogonal axes that hold the data will do; with fewer samples than dimensions, those of a QR.
        few = len(x) < x.shape[1]
        basis_DR = torch.linalg.qr((x.to(device).double() - mean_D).T).Q if few else None
        count = min(x.shape)
        cov_RR = torch.zeros(count, count, dtype=torch.float64, device=device)
        for r in rows:
            centred = x[r].to(device).double() - mean_D
            centred = centred if basis_DR is None else centred @ basis_DR
            cov_RR.addmm_(centred.T, centred)
        scale = float((cov_RR.trace() / x.numel()).sqrt()) or 1.0
        axes_RR = _principal(cov_RR)
        axes_DR = axes_RR if basis_DR is None else basis_DR @ axes_RR
        return cls(mean_D, (axes_DR / scale).contiguous(), scale)

    def apply(self, x_MD: NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
        """Rotated features (M, A) on the rotation's device."""
        out_MA = torch.zeros(len(x_MD), self.width, dtype=dtype, device=self.mean_D.device)
        out_MA[:, self.intercept] = 1
        x = torch.from_numpy(np.ascontiguousarray(x_MD))
        for r in _slices(len(x)):
            centred = x[r].to(self.mean_D.device).double() - self.mean_D
            out_MA[r, : self.intercept] = (centred @ self.axes_DR).to(dtype)
        return out_MA


def _principal(cov_RR: torch.Tensor) -> torch.Tensor:
    """Orthogonal axes (R, R) that make a covariance diagonal, or nearly so.

    Eigensolvers can fail on many equal eigenvalues (dead dimensions, copies of a sample). A small term of the diagonal
    tells them apart; axes that are a little off, or none, cost iterations and change no solution.
    """
    count = len(cov_RR)
    ramp_R = torch.linspace(0, 1, count, dtype=cov_RR.dtype, device=cov_RR.device)
    try:
        axes_RR: torch.Tensor = torch.linalg.eigh(
            cov_RR + torch.diag(1e-9 * ramp_R * cov_RR.trace() / count)
        ).eigenvectors
        return axes_RR.flip(1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch's LinAlgError is one
        return torch.eye(count, dtype=cov_RR.dtype, device=cov_RR.device)


def _slices(length: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, length)) for start in range(0, length, _ROWS)]
