"""Cached features beside their images, for any PyTorch loop: `for images, targets in cache.loader(...)`.

The order is the pure function that students are trained with (`pipeline.samples.order`), so an epoch is the same in every
process; blocks are read whole and a bounded number of them is kept.

Shapes: B rows of a batch, S image side in pixels, P patch tokens, D dimensions.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from unic_pipe.pipeline.process.crew import crew_of_one
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.order import epoch_order
from unic_pipe.pipeline.views.rows import Rendering, finished_views
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import FeatureDefinition

Targets = dict[TokenType, Tensor]
"""cls (B, D) and patch (B, P, D), float32."""


class Units(Protocol):
    """What is read of a `FeatureCache` (whose module imports this one)."""

    @property
    def definition(self) -> FeatureDefinition:
        """What the features are made from."""

    @property
    def block_rows(self) -> int:
        """Rows of a full block."""

    @property
    def shapes(self) -> dict[TokenType, tuple[int, ...]]:
        """Shape of one row's features."""

    def valid(self, view: int, token: TokenType, block: int) -> NDArray[np.bool_]:
        """Which rows of a block can be used."""

    def read_block(
        self, view: int, token: TokenType, block: int, rows_digest: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Features of a unit, and which rows can be used."""


@dataclass
class CachedBatches(IterableDataset[tuple[Tensor, Targets]]):
    """Batches of (images uint8 (B, 3, S, S), targets). Make one with `FeatureCache.loader`.

    Iterable as it is, or through `DataLoader(batches, batch_size=None, num_workers=N)`: workers take turns with the
    batches. It pickles as paths, so workers may be spawned.
    """

    cache: Units
    dataset: Dataset
    batch: int
    view: int
    tokens: tuple[TokenType, ...]
    size: int
    seed: int
    epoch: int
    window: int
    """Blocks that are shuffled together; at most this many and one more are kept in memory."""
    shuffle: bool
    blocks: int
    _kept: OrderedDict[int, dict[TokenType, NDArray[np.float32]]] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        """Number of batches of an epoch; a shuffled epoch leaves out the last rows that do not fill one."""
        rows = len(self._rows())
        return rows // self.batch if self.shuffle else -(-rows // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Targets]]:
        """The batches of this epoch, those of this worker if there are several.
        Raises StageError: a unit is missing or damaged, belongs to other rows, or a sample cannot be read."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for rows_B in self.order()[first::step]:
            yield self._images(rows_B), self._targets(rows_B)

    def order(self) -> list[NDArray[np.int64]]:
        """The row numbers of every batch."""
        rows = self._rows()
        if not self.shuffle:
            return [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        order_SB = epoch_order(
            rows,
            self.cache.block_rows,
            seed=self.seed,
            epoch=self.epoch,
            batch=self.batch,
            streams=1,
            window=self.window,
        )
        return list(order_SB)

    def __reduce__(self) -> tuple[object, tuple[()]]:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return partial(CachedBatches, **settings), ()

    def _rows(self) -> NDArray[np.int64]:
        """Rows that are valid for every token type, ascending."""
        found = [np.empty(0, np.int64)]
        for block in range(self.blocks):
            first, _ = self.dataset.block_range(block)
            valid = np.logical_and.reduce([self.cache.valid(self.view, token, block) for token in self.tokens])
            valid &= self.dataset.kept(block)
            found.append(first + np.flatnonzero(valid))
        return np.concatenate(found)

    def _images(self, rows_B: NDArray[np.int64]) -> Tensor:
        rendering = Rendering.of(self.cache.definition, self.view, self.size)
        with crew_of_one(torch.get_num_threads()) as crew:
            [x_B3SS] = finished_views(self.dataset, rows_B.tolist(), [rendering], crew)
        return x_B3SS

    def _targets(self, rows_B: NDArray[np.int64]) -> Targets:
        block_of_B = rows_B // self.cache.block_rows
        found: dict[TokenType, NDArray[np.float32]] = {
            token: np.empty((len(rows_B), *self.cache.shapes[token]), np.float32) for token in self.tokens
        }
        for block in np.unique(block_of_B).tolist():
            values, mine = self._block(block), np.flatnonzero(block_of_B == block)
            for token in self.tokens:
                found[token][mine] = values[token][rows_B[mine] % self.cache.block_rows]
        return {token: torch.from_numpy(values) for token, values in found.items()}

    def _block(self, block: int) -> dict[TokenType, NDArray[np.float32]]:
        if block in self._kept:
            self._kept.move_to_end(block)
            return self._kept[block]
        while len(self._kept) > self.window:
            self._kept.popitem(last=False)
        digest = self.dataset.block_digest(block)
        read = {t: self.cache.read_block(self.view, t, block, rows_digest=digest)[0] for t in self.tokens}
        self._kept[block] = read
        return read
