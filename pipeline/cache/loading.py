"""Cached features beside their images, for any PyTorch loop: `for images, targets in cache.loader(...)`.

The order is the pure function that students are trained with (`pipeline.order`), so an epoch is the same in every
process; blocks are read whole and a bounded number of them is kept.

Shapes: B rows of a batch, S image side in pixels, P patch tokens, D dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.cache.reader import FeatureCache
from pipeline.order import epoch_order
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import decode_image
from pipeline.views.render import render_view
from schemas.config import TokenType
from schemas.errors import UserError

Targets = dict[TokenType, Tensor]
"""cls (B, D) and patch (B, P, D), float32."""


@dataclass
class CachedBatches(IterableDataset[tuple[Tensor, Targets]]):
    """Batches of (images uint8 (B, 3, S, S), targets). Make one with `FeatureCache.loader`.

    Iterable as it is, or through `DataLoader(batches, batch_size=None, num_workers=N)`: workers take turns with the
    batches. It pickles as paths, so workers may be spawned.
    """

    cache: FeatureCache
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

        Raises:
            StageError: a unit is missing or damaged, belongs to other rows, or a sample cannot be read.
        """
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

    def at_epoch(self, epoch: int) -> CachedBatches:
        """The same with another order."""
        return CachedBatches(**{**self._settings(), "epoch": epoch})  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, tuple[dict[str, object]]]:
        return _rebuild, (self._settings(),)

    def _settings(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _rows(self) -> NDArray[np.int64]:
        """Rows that are valid for every token type, ascending."""
        found = [np.empty(0, np.int64)]
        for block in range(self.blocks):
            first, _ = self.dataset.block_range(block)
            valid = np.logical_and.reduce([self.cache.valid(self.view, token, block) for token in self.tokens])
            found.append(first + np.flatnonzero(valid))
        return np.concatenate(found)

    def _images(self, rows_B: NDArray[np.int64]) -> Tensor:
        definition = self.cache.definition
        images = []
        rows = rows_B.tolist()
        for row, read in zip(rows, self.dataset.read_many(rows), strict=True):
            image_HWC, key = decode_image(read()), self.dataset.key(row)
            images.append(render_view(image_HWC, definition.recipe, definition.view_seed, key, self.view, self.size))
        return torch.stack(images)

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
        read = {t: self.cache.read_block(self.view, t, block, rows_digest=digest).values for t in self.tokens}
        self._kept[block] = read
        return read


def _rebuild(settings: dict[str, object]) -> CachedBatches:
    return CachedBatches(**settings)  # type: ignore[arg-type]


def cached_batches(
    cache: FeatureCache,
    dataset: Dataset,
    *,
    batch: int,
    view: int = 0,
    tokens: tuple[TokenType, ...] | None = None,
    size: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    window: int = 8,
    shuffle: bool = True,
) -> CachedBatches:
    """See `FeatureCache.loader`."""
    if dataset.digest != cache.definition.dataset or dataset.block_rows != cache.block_rows:
        raise UserError(
            f"{cache.name} was not extracted from {dataset.manifest.name}: dataset digest differs "
            f"({cache.definition.dataset[:8]}, not {dataset.digest[:8]}).",
            "Open the dataset that it names: Dataset.open('samples/" + cache.manifest.dataset + "').",
        )
    there = [token for token in cache.shapes if cache.records(view, token)]
    chosen = tuple(there) if tokens is None else tokens
    if not chosen or not set(chosen) <= set(there):
        raise UserError(
            f"View {view} of {cache.name} has {' and '.join(there) or 'no'} tokens, not {', '.join(chosen) or 'any'}.",
            "Choose another view, or extract it: unic-pipe extract",
        )
    blocks = 1 + min(max(cache.records(view, token)) for token in chosen)
    return CachedBatches(
        cache=cache,
        dataset=dataset,
        batch=batch,
        view=view,
        tokens=chosen,
        size=size or cache.definition.encoder.image_size,
        seed=seed,
        epoch=epoch,
        window=window,
        shuffle=shuffle,
        blocks=blocks,
    )
