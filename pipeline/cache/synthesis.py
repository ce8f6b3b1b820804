"""From stored integers to targets on the training device: a scatter, one matrix product over dimensions, one over tokens.

Codec and standardization are folded into the matrices, so that nothing is computed twice.

Legend: N rows, P tokens, D dimensions, K = P * D coefficients, U <= K of them that are not zero everywhere; R <= P tokens
and C <= D components that these reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Synthesis:
    """x = bias + spatial.T @ Y @ matrix, where row n of Y holds the n-th row's integers in their places."""

    bias_PD: Tensor
    matrix_CD: Tensor
    """(D, D): components to dimensions; or (D,): the factor of each dimension, where there is no transform."""
    spatial_PP: Tensor | None
    """(token components, tokens); None: no transform over tokens."""
    token_K: Tensor
    component_K: Tensor
    reach_K2: NDArray[np.int64]
    """(R, C) of the first k + 1 coefficients."""

    @staticmethod
    def of(
        *,
        mean_PD: NDArray[Any],
        scale_D: NDArray[Any],
        gain_D: NDArray[Any],
        order_K: NDArray[np.int32],
        basis_DD: NDArray[Any] | None,
        spatial_PP: NDArray[Any] | None,
        rotation_DD: NDArray[np.float64] | None = None,
    ) -> Synthesis:
        """Fold the parts of a transform, in float64; `rotation_DD`: what comes out is multiplied by its transpose."""
        gain_D = gain_D.astype(np.float64)
        matrix = gain_D * scale_D if basis_DD is None else gain_D[:, None] * basis_DD * scale_D
        if rotation_DD is not None:
            mean_PD = mean_PD @ rotation_DD.T
            matrix = (np.diag(matrix) if matrix.ndim == 1 else matrix) @ rotation_DD.T
        token_K, component_K = np.divmod(order_K.astype(np.int64), len(gain_D))
        return Synthesis(
            bias_PD=torch.from_numpy(mean_PD.astype(np.float32)),
            matrix_CD=torch.from_numpy(matrix.astype(np.float32)),
            spatial_PP=None if spatial_PP is None else torch.from_numpy(np.array(spatial_PP, np.float32)),
            token_K=torch.from_numpy(token_K),
            component_K=torch.from_numpy(component_K),
            reach_K2=1 + np.stack([np.maximum.accumulate(token_K), np.maximum.accumulate(component_K)], axis=1),
        )

    def to(self, device: torch.device) -> Synthesis:
        """The same on a device."""
        return Synthesis(
            self.bias_PD.to(device),
            self.matrix_CD.to(device),
            None if self.spatial_PP is None else self.spatial_PP.to(device),
            self.token_K.to(device),
            self.component_K.to(device),
            self.reach_K2,
        )

    def __call__(self, q_NU: Tensor) -> Tensor:
        """Float32 (N, P, D) of integers given as float32 (N, U), on their device."""
        (rows, used), (tokens, dims) = q_NU.shape, self.bias_PD.shape
        transform = self.matrix_CD.ndim == 2
        reach, components = self.reach_K2[used - 1].tolist()
        reach = reach if self.spatial_PP is not None else tokens
        components = components if transform else dims
        place_U = self.token_K[:used] * components + self.component_K[:used]
        y_NRC = q_NU.new_zeros((rows, reach * components)).index_copy_(1, place_U, q_NU).view(rows, reach, components)
        if not transform:
            return torch.addcmul(self.bias_PD, y_NRC, self.matrix_CD)
        matrix_CD = self.matrix_CD[:components]
        if self.spatial_PP is None:
            return (y_NRC @ matrix_CD).add_(self.bias_PD)
        spatial_PR = self.spatial_PP[:reach].T
        dims_first = reach * dims * (components + tokens)
        tokens_first = tokens * components * (reach + dims)
        if dims_first < tokens_first:
            return (spatial_PR @ (y_NRC @ matrix_CD)).add_(self.bias_PD)
        return ((spatial_PR @ y_NRC) @ matrix_CD).add_(self.bias_PD)
