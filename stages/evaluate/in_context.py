"""In-context segmentation (Hummingbird: Balažević et al., NeurIPS 2023, arXiv 2306.01667): nothing is trained.

A memory holds training patches with the histogram of the classes in each. A test patch takes the histograms of its k
nearest ones by cosine similarity, weighted by softmax(similarity / temperature); they are upsampled bilinearly, and the
likeliest class of each pixel is the answer.

Shapes: M patches in the memory, D dimensions, C classes, N query patches, K neighbours, B images, P = G x G patches.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.pipeline.benchmarks.label_maps import patch_histograms
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.dense import Confusion, DenseTask, scored
from unic_pipe.stages.evaluate.dense_data import DenseData, Scenes
from unic_pipe.stages.evaluate.outcome import Outcome, Setting

_TILE = 65_536
_QUERIES = 2048
"""Tiles of similarities are at most 2,048 x 65,536 float32: 512 MiB."""


class Memory(NamedTuple):
    """Training patches: normalised tokens (M, D) as float16, and class shares (M, C) as float16, on the CPU."""

    tokens_MD: Tensor
    shares_MC: Tensor


def run(task: DenseTask, setting: Setting) -> Outcome | None:
    """Remember the training set, look up the test set; None after a stop."""
    config = task.config
    assert config.classes is not None
    memory = make_memory(task.train, config.classes, config.memory, config.seed)

    def answer(scenes: Scenes) -> Tensor:
        return in_context_logits(memory, scenes, task.test.grid, config.k, config.temperature, setting.device).argmax(1)

    return scored(task, setting, Confusion(config.classes), answer, {"memory_patches": len(memory.tokens_MD)})


def make_memory(data: DenseData, classes: int, size: int, seed: int) -> Memory:
    """At most `size` patches, equally many of every image (drawn by `seed`); patches without any class are left out.
    Raises UserError: no patch has a class, or images are more than patches may be."""
    rows = data.dataset.manifest.rows
    quota = size // rows
    if quota < 1:
        raise UserError(f"A memory of {size:,} patches has less than one for each of {rows:,} images.", "Raise memory.")
    tokens: list[Tensor] = []
    shares: list[Tensor] = []
    for number in range(data.blocks):
        scenes, random = data.block(number), np.random.default_rng([seed, number])
        for patch_PD, labels_SS in zip(scenes.patch_NPD, scenes.labels_NSS, strict=True):
            shares_PC = patch_histograms(labels_SS, data.grid, classes)
            usable: NDArray[np.int64] = np.flatnonzero(shares_PC.any(axis=1))
            chosen = np.sort(random.permutation(usable)[:quota])
            tokens.append(F.normalize(torch.from_numpy(patch_PD[chosen]), dim=-1).half())
            shares.append(torch.from_numpy(shares_PC[chosen]).half())
    if not sum(map(len, tokens)):
        raise UserError("No patch of the training set has a class.", "Check classes and first_class of the benchmark.")
    return Memory(torch.cat(tokens), torch.cat(shares))


def in_context_logits(
    memory: Memory, scenes: Scenes, grid: tuple[int, int], k: int, temperature: float, device: str
) -> Tensor:
    """Class shares of every pixel (B, C, S, S) of some images."""
    x_BPD = F.normalize(torch.from_numpy(scenes.patch_NPD), dim=-1)
    found = [
        _looked_up(memory, queries_ND.to(device), k, temperature)
        for queries_ND in torch.split(x_BPD.flatten(0, 1), _QUERIES)
    ]
    side = scenes.labels_NSS.shape[-1]
    shares_BCGG = torch.cat(found).reshape(len(x_BPD), *grid, -1).permute(0, 3, 1, 2)
    return F.interpolate(shares_BCGG, size=(side, side), mode="bilinear", align_corners=False)


def _looked_up(memory: Memory, queries_ND: Tensor, k: int, temperature: float) -> Tensor:
    """Weighted class shares (N, C) of the nearest patches."""
    best_NK = queries_ND.new_empty((len(queries_ND), 0))
    index_NK = torch.empty((len(queries_ND), 0), dtype=torch.int64, device=queries_ND.device)
    for start in range(0, len(memory.tokens_MD), _TILE):
        tile_TD = memory.tokens_MD[start : start + _TILE].to(queries_ND.device).float()
        similarity_NT = queries_ND @ tile_TD.T
        value_NK, place_NK = similarity_NT.topk(min(k, len(tile_TD)), dim=1)
        best_NK, index_NK = torch.cat([best_NK, value_NK], 1), torch.cat([index_NK, place_NK + start], 1)
        best_NK, order_NK = best_NK.topk(min(k, best_NK.shape[1]), dim=1)
        index_NK = index_NK.gather(1, order_NK)
    weight_NK = (best_NK / temperature).softmax(1)
    shares_NKC = memory.shares_MC[index_NK.cpu()].to(queries_ND.device).float()
    return torch.einsum("nk,nkc->nc", weight_NK, shares_NKC)
