"""Standardization of targets by the batch itself, as the official implementation of DUNE does it (arXiv 2503.14405).

In training (x - mean(x)) / max(std(x), .001), over all tokens of the batch with the unbiased std; averages with the
momentum m follow, and validation uses them: mean ← m · mean(x) + (1 - m) · mean, and std alike, which is floored only where
it divides. Targets depend on who else is in the batch, so parts of a batch have others than the whole.
"""

import torch
from torch import Tensor

from unic_pipe.pipeline.cache.normalisers import BATCH_STD_FLOOR
from unic_pipe.schemas.config import TokenType
from unic_pipe.stages.distill.model.standardization import RunningStandardization


class BatchStandardization(RunningStandardization):
    """Mean and std of the batch in training, their averages in validation."""

    eps = 0.0
    least = BATCH_STD_FLOOR

    @torch.no_grad()
    def __call__(self, teacher: str, token: TokenType, x: Tensor, learn: bool = True) -> Tensor:
        """Standardized tokens, of (B, D) or (B, P, D) float32 ones; with `learn`, by themselves."""
        if not learn:
            known = self._state[teacher][token]
            return (x - known["mean"]) / known["std"].clamp(min=self.least)
        mean_D, std_D = self._measure(teacher, token, x)
        return (x - mean_D) / std_D.clamp(min=self.least)
