"""An exponential moving average of weights (`ema: DECAY`), of the encoder and of its ladder alike.

The averaged encoder is what is exported, and the validation loss is that of the averages, so that it is about the
student which one gets; a student that starts from this one (`init`) starts from them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average ← decay · average + (1 - decay) · weight after every step; it begins with the initial weights."""

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.decay = decay
        self._weights = [p for module in modules for p in module.parameters()]
        self._averages = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights as they are now."""
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._weights], 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules have the averages as their weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> list[Tensor]:
        """What a checkpoint keeps: the averages in the order of the parameters."""
        return self._averages

    @torch.no_grad()
    def load(self, state: Sequence[Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        for average, value in zip(self._averages, state, strict=True):
            average.copy_(value)

    def _swap(self) -> None:
        for i, weight in enumerate(self._weights):
            self._averages[i], weight.data = weight.data, self._averages[i]
