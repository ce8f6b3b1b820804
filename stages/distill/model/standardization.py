"""Running standardization of targets (`standardize: ema`), as the official implementation of UNIC does it.

Per teacher and token type, over all tokens of a batch, after (x - mean) / (std + eps) was computed with the old values:
    mean ← m · mean(x) + (1 - m) · mean,   std ← m · (std(x) + eps) + (1 - m) · std
std(x) is unbiased, eps = 1e-6; it begins with mean 0 and std 1, so the first batch is not standardized. The momentum m
falls from 1 to .001 along a cosine over all steps. Validation changes nothing. The batch is the global one: moments of
its shares (other processes', micro-batches) are added up first. In a mixture, a teacher's tokens are those that it has.

Shapes: B images, P patch tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.schemas.config import TokenType
from unic_pipe.stages.distill.model.moments import Moments, merged, moments_of
from unic_pipe.stages.distill.model.schedule import learning_rates

EPS = 1e-6
FIRST_MOMENTUM, LAST_MOMENTUM = 1.0, 0.001

RunningState = dict[str, dict[str, dict[str, Tensor]]]
"""`state[teacher][token]["mean" or "std"]`, each (D,) float32."""


def momenta(epochs: int, steps_per_epoch: int) -> NDArray[np.float64]:
    """Momentum of every step, (epochs * steps_per_epoch,) float64."""
    return learning_rates(FIRST_MOMENTUM, LAST_MOMENTUM, epochs, steps_per_epoch, 0)


class RunningStandardization:
    """Mean and std of every teacher's tokens, updated with every training batch."""

    eps = EPS

    def __init__(self, dims: Mapping[TokenType, Mapping[str, int]], device: torch.device) -> None:
        """`dims`: for each token type that is trained on, every teacher's dimension D."""
        self.device = device
        self._state: RunningState = {}
        self._seen: dict[tuple[str, TokenType], list[Moments]] = {}
        """Of each share since the last update."""
        for token, sizes in dims.items():
            for teacher, size in sizes.items():
                start = {"mean": torch.zeros(size, device=device), "std": torch.ones(size, device=device)}
                self._state.setdefault(teacher, {})[token] = start

    @torch.no_grad()
    def __call__(self, teacher: str, token: TokenType, x: Tensor, learn: bool = True) -> Tensor:
        """Standardized tokens, of (B, D) or (B, P, D) float32 ones, by what was known before this batch.

        With `learn`, they are part of the next `update`.
        """
        known = self._state[teacher][token]
        if learn:
            self._measure(teacher, token, x)
        return (x - known["mean"]) / (known["std"] + self.eps)

    def _measure(self, teacher: str, token: TokenType, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of a share of the batch, noted for the next `update`."""
        found = moments_of(x)
        self._seen.setdefault((teacher, token), []).append(found)
        return found[1:]

    @torch.no_grad()
    def update(self, momentum: float, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count the batch whose shares were standardized since the last update.

        `total` adds up what the processes hold, which have seen the same teachers and token types.
        """
        for (teacher, token), shares in self._seen.items():
            mean_now_D, std_now_D = merged(shares, total)
            known = self._state[teacher][token]
            known["mean"] = momentum * mean_now_D + (1 - momentum) * known["mean"]
            known["std"] = momentum * (std_now_D + self.eps) + (1 - momentum) * known["std"]
        self._seen = {}

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
