"""Linear probe of large datasets: softmax regression by SGD on L2-normalised features, many settings trained together.

Shapes: N training samples, M test samples, D dimensions, S samples of a batch, B pairs (lr, wd), K classes.
Protocol of t-ReX and UNIC: momentum .9, batch 1024, 100 epochs, learning rate by a cosine over the epochs, weight decay
on weights and biases, as `torch.optim.SGD` has it.

All pairs see the same batches in the same order from the same initial weights, so a batch is read and normalised once,
and its products with the weights of all pairs are one GEMM with B * K columns. Pairs never mix: each one's weights are
those of a run of its own, but for rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.stages.evaluate.scoring import middle_of_best, validation_split

BATCH, MOMENTUM = 1024, 0.9
LR_RANGE, WD_RANGE = (0.1, 100.0), (1e-12, 1e-4)
_LRS, _WDS = 7, 5
_NUMBERS = 200_000_000
"""Weights, momenta, gradients and logits of pairs trained together hold at most so many numbers (800 MB)."""

Pair = tuple[float, float]
"""Learning rate and weight decay."""


@dataclass(frozen=True)
class SgdSearch:
    """Outcome of a search over (lr, wd)."""

    lr: float
    wd: float
    validation_top1: float


class SgdProbe:
    """A trained linear classifier of L2-normalised features."""

    def __init__(self, weights_DK: torch.Tensor, bias_K: torch.Tensor) -> None:
        self.weights_DK, self.bias_K = weights_DK, bias_K

    def scores(self, x_MD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (M, K)."""
        with torch_threads(usable_cores()):
            rows = _rows(x_MD, slice(None), self.bias_K.device)
            scores: NDArray[np.float64] = (rows @ self.weights_DK + self.bias_K).double().cpu().numpy()
        return scores

    def predict(self, x_MD: NDArray[np.float32]) -> NDArray[np.int64]:
        """Predicted labels (M,)."""
        parts = [self.scores(x_MD[at : at + 4 * BATCH]).argmax(1) for at in range(0, len(x_MD), 4 * BATCH)]
        return np.concatenate(parts)


def train(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    pairs: Sequence[Pair],
    *,
    classes: int,
    epochs: int,
    seed: int,
    device: str = "cpu",
) -> list[SgdProbe]:
    """Train one probe for each pair (lr, wd). `x_ND` may be memory-mapped: batches are read from it in random order.

    Memory beside the features: a batch, and four arrays of B * K * D numbers, in groups of pairs of at most 800 MB.
    """
    each = classes * (3 * x_ND.shape[1] + 3 * BATCH)
    group = max(1, _NUMBERS // each)
    found: list[SgdProbe] = []
    with torch_threads(usable_cores()):
        for first in range(0, len(pairs), group):
            found += _train(x_ND, labels_N, pairs[first : first + group], classes, epochs, seed, torch.device(device))
    return found


def _train(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    pairs: Sequence[Pair],
    classes: int,
    epochs: int,
    seed: int,
    device: torch.device,
) -> list[SgdProbe]:
    dims, count = x_ND.shape[1], len(pairs)
    generator = torch.Generator().manual_seed(seed)
    # The last row is the bias: batches carry a column of ones. torch.nn.Linear's initial range.
    first_DK = (torch.rand(dims + 1, classes, generator=generator) * 2 - 1) / math.sqrt(dims)
    weights = first_DK[:, None].repeat(1, count, 1).to(device)
    momentum = torch.zeros_like(weights)
    lr_B, wd_B = (torch.tensor(column, dtype=torch.float32, device=device) for column in zip(*pairs, strict=True))
    labels = torch.from_numpy(labels_N).to(device)
    for epoch in range(epochs):
        order_N = torch.randperm(len(x_ND), generator=generator).numpy()
        rate_B1 = (lr_B * (0.5 * (1 + math.cos(math.pi * epoch / epochs))))[:, None]
        for at in range(0, len(x_ND), BATCH):
            batch = np.sort(order_N[at : at + BATCH])  # one batch is a sum: sorted, a memory map is read forwards
            rows = F.pad(_rows(x_ND, batch, device), (0, 1), value=1.0)
            own = labels[torch.from_numpy(batch).to(device)][:, None, None].expand(-1, count, 1)
            errors = (rows @ weights.flatten(1)).view(-1, count, classes).softmax(2)
            errors.scatter_add_(2, own, errors.new_full((1, 1, 1), -1.0).expand(own.shape))
            gradient = (rows.T @ errors.flatten(1)).view_as(weights) / len(rows)
            momentum.mul_(MOMENTUM).add_(gradient).add_(weights * wd_B[:, None])
            weights -= rate_B1 * momentum
    return [SgdProbe(weights[:-1, b].clone(), weights[-1, b].clone()) for b in range(count)]


def search(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    *,
    fraction: float,
    epochs: int,
    seed: int,
    device: str = "cpu",
) -> SgdSearch:
    """Choose (lr, wd) from a grid over the protocol's ranges by top-1 accuracy on a part of the training set.

    It is given the training set and nothing else. Of equally good pairs the middle one wins (`middle_of_best`). Pairs that
    diverge score nothing.
    """
    held_N = validation_split(labels_N, fraction, seed)
    pairs = [(lr, wd) for lr in _spaced(LR_RANGE, _LRS) for wd in _spaced(WD_RANGE, _WDS)]
    classes = int(labels_N.max()) + 1
    probes = train(x_ND[~held_N], labels_N[~held_N], pairs, classes=classes, epochs=epochs, seed=seed, device=device)
    top1: dict[tuple[float, ...], float] = {
        pair: validation_top1(probe, x_ND[held_N], labels_N[held_N]) for pair, probe in zip(pairs, probes, strict=True)
    }
    lr, wd = middle_of_best(top1)
    return SgdSearch(lr, wd, top1[lr, wd])


def validation_top1(probe: SgdProbe, x_MD: NDArray[np.float32], labels_M: NDArray[np.int64]) -> float:
    """Top-1 accuracy; 0 of a probe that diverged."""
    if not bool(probe.weights_DK.isfinite().all()):
        return 0.0
    return float(np.mean(probe.predict(x_MD) == labels_M))


def _spaced(ends: Pair, count: int) -> list[float]:
    low, high = map(math.log10, ends)
    return [10 ** (low + (high - low) * i / (count - 1)) for i in range(count)]


def _rows(x_ND: NDArray[np.float32], rows: NDArray[np.int64] | slice, device: torch.device) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(x_ND[rows])).to(device), dim=1)
