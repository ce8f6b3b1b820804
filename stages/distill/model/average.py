"""An exponential moving average of weights (`ema: DECAY`), of the encoder and of its ladder alike; BatchNorm's running mean
and variance count as weights, and its number of batches stays what it is.

The averaged encoder is what is exported, and the validation loss is that of the averages, so that it is about the
student which one gets; a student that starts from this one (`init`) starts from them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unic_pipe.stages.distill.parallel.batch_norm import running_statistics
from unic_pipe.stages.distill.parallel.sharding import local, locals_of, shared_as


class WeightAverage:
    """average ← decay · average + (1 - decay) · weight after every step; it begins with the initial weights."""

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.decay = decay
        self._weights = [w for module in modules for w in (*module.parameters(), *running_statistics(module))]
        self._averages = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights as they are now."""
        torch._foreach_lerp_(locals_of(self._averages), locals_of(self._weights), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules have the averages as their weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> list[Tensor]:
        """What a checkpoint keeps: the averages, of each module's parameters and then of its running statistics."""
        return self._averages

    @torch.no_grad()
    def load(self, state: Sequence[Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        for average, value in zip(self._averages, state, strict=True):
            local(average).copy_(local(shared_as(value, average)))

    @torch.no_grad()
    def _swap(self) -> None:
        # Contents, not tensors: what was shared out over processes knows its own memory.
        for average, weight in zip(locals_of(self._averages), locals_of(self._weights), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
