"""Running standardization of targets (`standardize: ema`), as the official implementation of UNIC does it.

Per teacher and token type, over all tokens of a batch, after (x - mean) / (std + eps) was computed with the old values:
    mean ← m · mean(x) + (1 - m) · mean,   std ← m · (std(x) + eps) + (1 - m) · std
std(x) is unbiased, eps = 1e-6; it begins with mean 0 and std 1, so the first batch is not standardized. The momentum m
falls from 1 to .001 along a cosine over all steps. Validation (m = 0) changes nothing.

Shapes: B images, P patch tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.config import TokenType
from stages.distill.schedule import learning_rates

EPS = 1e-6
FIRST_MOMENTUM, LAST_MOMENTUM = 1.0, 0.001

RunningState = dict[str, dict[str, dict[str, Tensor]]]
"""`state[teacher][token]["mean" or "std"]`, each (D,) float32."""


def momenta(epochs: int, steps_per_epoch: int) -> NDArray[np.float64]:
    """Momentum of every step, (epochs * steps_per_epoch,) float64."""
    return learning_rates(FIRST_MOMENTUM, LAST_MOMENTUM, epochs, steps_per_epoch, 0)


class RunningStandardization:
    """Mean and std of every teacher's tokens, updated with every training batch."""

    def __init__(self, dims: Mapping[TokenType, Mapping[str, int]], device: torch.device) -> None:
        """`dims`: for each token type that is trained on, every teacher's dimension D."""
        self.device = device
        self._state: RunningState = {}
        for token, sizes in dims.items():
            for teacher, size in sizes.items():
                start = {"mean": torch.zeros(size, device=device), "std": torch.ones(size, device=device)}
                self._state.setdefault(teacher, {})[token] = start

    @torch.no_grad()
    def __call__(self, teacher: str, token: TokenType, x: Tensor, momentum: float) -> Tensor:
        """Standardized tokens, of (B, D) or (B, P, D) float32 ones, by what was known before them."""
        known = self._state[teacher][token]
        mean_D, std_D = known["mean"], known["std"]
        if momentum > 0:
            flat_ND = x.flatten(0, -2)
            now_D, mean_now_D = torch.std_mean(flat_ND, dim=0, correction=min(1, len(flat_ND) - 1))
            known["mean"] = momentum * mean_now_D + (1 - momentum) * mean_D
            known["std"] = momentum * (now_D + EPS) + (1 - momentum) * std_D
        return (x - mean_D) / (std_D + EPS)

    def state(self) -> RunningState:
        """What a checkpoint keeps."""
        return self._state

    def load(self, state: RunningState) -> None:
        """Go on from what a checkpoint kept."""
        self._state = {
            teacher: {
                token: {name: value.to(self.device) for name, value in known.items()} for token, known in tokens.items()
            }
            for teacher, tokens in state.items()
        }
