"""Mean and deviation of a batch's tokens, of which parts are seen at a time: micro-batches, and other processes' shares.

Legend: N tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Moments = tuple[int, Tensor, Tensor]
"""Number of tokens, their mean and unbiased std, each (D,) float32."""


def moments_of(x: Tensor) -> Moments:
    """Of tokens (..., D)."""
    flat_ND = x.flatten(0, -2)
    std_D, mean_D = torch.std_mean(flat_ND, dim=0, correction=min(1, len(flat_ND) - 1))
    return len(flat_ND), mean_D, std_D


def merged(parts: list[Moments], total: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std of all parts together, float32; a single part's are its own. Of no token at all: NaN.

    `total` adds up tensors over processes, which all call this.
    """
    if total is None and len(parts) == 1:
        return parts[0][1:]
    mean_0D = parts[0][1]
    precise = torch.float32 if mean_0D.device.type == "mps" else torch.float64
    sums_3D = torch.zeros(3, len(mean_0D), dtype=precise, device=mean_0D.device)
    for count, mean_D, std_D in parts:
        mean_D, std_D = mean_D.to(precise), std_D.to(precise)
        sums_3D[0] += count
        sums_3D[1] += count * mean_D
        sums_3D[2] += max(count - 1, 1) * std_D**2 + count * mean_D**2
    count_D, first_D, second_D = total(sums_3D) if total is not None else sums_3D
    mean_D = first_D / count_D
    variance_D = (second_D - count_D * mean_D**2) / (count_D - 1).clamp(min=1)
    return mean_D.float(), variance_D.clamp(min=0).sqrt().float()
