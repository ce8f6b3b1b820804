"""Distillation targets from the caches: a window of decoded blocks, and one multiply-add on the training device.

The target is (feature - mean) / std; the codec turns integers into features by value * scale + offset (int8), so both
fold into value * (scale / std) + (offset - mean) / std. A teacher whose grid of patch tokens differs from the
student's is resampled to it afterwards: bilinear between token centres, and antialiased (a triangle as wide as the
reduction) where the grid shrinks.

Shapes: B rows of a batch, P patch tokens of the teacher, Q of the student, D teacher dimension, K blocks of a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.cache.codecs import Decoded
from pipeline.cache.reader import FeatureCache
from pipeline.cache.statistics import standardization
from schemas.config import TokenType
from schemas.features import StatisticsDocument

BlockKey = tuple[str, TokenType, int, int]
"""(teacher, token type, view, block)."""


class BlockWindow:
    """Decoded blocks, least recently used first; reads run in a pool. Used by one thread at a time."""

    def __init__(self, caches: Mapping[str, FeatureCache], pool: Executor, capacity: int) -> None:
        """`capacity`: the number of (teacher, token type, view, block) that are kept."""
        self.caches, self.pool, self.capacity = caches, pool, capacity
        self._blocks: OrderedDict[BlockKey, Future[Decoded]] = OrderedDict()

    def request(self, keys: Sequence[BlockKey]) -> None:
        """Start reading what is not there, and drop what was not asked for longest."""
        for key in keys:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                teacher, token, view, block = key
                self._blocks[key] = self.pool.submit(self.caches[teacher].read_block_raw, view, token, block)
        while len(self._blocks) > max(self.capacity, len(keys)):
            self._blocks.popitem(last=False)

    def get(self, keys: Sequence[BlockKey]) -> list[Decoded]:
        """The blocks. Raises StageError where one is missing or damaged."""
        self.request(keys)
        return [self._blocks[key].result() for key in keys]


@dataclass(frozen=True)
class RawTargets:
    """Stored values of a batch and the affine that turns them into targets; small enough to send to a device."""

    values: Tensor
    """(B, D) or (B, P, D), int8 or float16."""
    scale_KD: Tensor
    shift_KD: Tensor
    block_B: Tensor
    """Which of the K rows of scale and shift belongs to each image (int64)."""

    def to(self, device: torch.device) -> RawTargets:
        """The same on a device; from pinned memory without waiting."""
        moved = (t.to(device, non_blocking=True) for t in (self.values, self.scale_KD, self.shift_KD, self.block_B))
        return RawTargets(*moved)

    def pin(self) -> RawTargets:
        """The same in pinned memory."""
        return RawTargets(*(t.pin_memory() for t in (self.values, self.scale_KD, self.shift_KD, self.block_B)))

    def decode(self) -> Tensor:
        """Targets, float32 (B, D) or (B, P, D)."""
        if len(self.scale_KD) == 1:
            return torch.addcmul(self.shift_KD[0], self.values.float(), self.scale_KD[0])
        scale_BD, shift_BD = self.scale_KD[self.block_B], self.shift_KD[self.block_B]
        if self.values.ndim == 3:
            scale_BD, shift_BD = scale_BD[:, None], shift_BD[:, None]
        return torch.addcmul(shift_BD, self.values.float(), scale_BD)


class TargetReader:
    """Gathers the stored values of arbitrary rows for every teacher and token type."""

    def __init__(
        self,
        window: BlockWindow,
        tokens: Sequence[TokenType],
        statistics: Mapping[str, StatisticsDocument] | None,
        block_rows: int,
    ) -> None:
        """`statistics` by teacher: targets are standardized with them; None: they are the features themselves."""
        self.window, self.tokens, self.block_rows = window, tuple(tokens), block_rows
        self._standard = {
            (teacher, token): None if statistics is None else _mean_and_std(statistics[teacher], token)
            for teacher in window.caches
            for token in self.tokens
        }

    def keys(self, rows_B: NDArray[np.int64], view: int) -> list[BlockKey]:
        """The blocks that the rows need."""
        blocks = np.unique(rows_B // self.block_rows).tolist()
        return [(teacher, token, view, block) for teacher, token in self._standard for block in blocks]

    def read(self, rows_B: NDArray[np.int64], view: int) -> dict[tuple[str, TokenType], RawTargets]:
        """The rows' targets in stored form, by teacher and token type; all rows must be usable."""
        block_of_B = rows_B // self.block_rows
        _, which_B = np.unique(block_of_B, return_inverse=True)
        keys = self.keys(rows_B, view)
        blocks = self.window.get(keys)
        per_pair = len(keys) // len(self._standard)
        return {
            pair: _gather(blocks[i * per_pair : (i + 1) * per_pair], rows_B % self.block_rows, which_B, standard)
            for i, (pair, standard) in enumerate(self._standard.items())
        }


class GridResampler:
    """Turns (B, P, D) patch tokens on one grid into (B, Q, D) on another: a fixed linear map over tokens."""

    def __init__(self, source: tuple[int, int], target: tuple[int, int], device: torch.device) -> None:
        """Grids as (rows, columns) of tokens; both cover the whole image."""
        self.weights_QP: Tensor | None = None
        if source != target:
            basis_P1HW = torch.eye(source[0] * source[1]).view(-1, 1, *source)
            resampled = F.interpolate(basis_P1HW, size=target, mode="bilinear", antialias=True, align_corners=False)
            self.weights_QP = resampled.flatten(1).T.contiguous().to(device)

    def __call__(self, x_BPD: Tensor) -> Tensor:
        """Resampled tokens, float32."""
        return x_BPD if self.weights_QP is None else self.weights_QP @ x_BPD


Standard = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and std per dimension."""


def _mean_and_std(statistics: StatisticsDocument, token: TokenType) -> Standard:
    found = statistics.cls if token == "cls" else statistics.patch
    assert found is not None, "statistics cover every token type that is trained on"
    return standardization(found)


def _gather(
    blocks: Sequence[Decoded], offset_B: NDArray[np.int64], which_B: NDArray[np.int64], standard: Standard | None
) -> RawTargets:
    stored = blocks[0].stored
    values = np.empty((len(offset_B), *stored.shape[1:]), dtype=stored.dtype)
    for i, block in enumerate(blocks):
        mine = np.flatnonzero(which_B == i)
        values[mine] = block.stored[offset_B[mine]]
    # float16 features are stored as they are: every block has scale 1 and offset 0.
    affine = blocks[:1] if stored.dtype == np.float16 else blocks
    scale_KD = np.stack([block.scale_D for block in affine]).astype(np.float64)
    offset_KD = np.stack([block.offset_D for block in affine]).astype(np.float64)
    mean_D, std_D = standard if standard is not None else (np.zeros(1), np.ones(1))
    return RawTargets(
        torch.from_numpy(values),
        torch.from_numpy((scale_KD / std_D).astype(np.float32)),
        torch.from_numpy(((offset_KD - mean_D) / std_D).astype(np.float32)),
        torch.from_numpy(which_B),
    )
