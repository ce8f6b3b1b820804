"""Patch tokens of one dataset beside their label maps, a block at a time.

Shapes: N usable rows of a block, P patch tokens, D dimensions, S side of the square that is scored, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.benchmarks.label_maps import centre_square, read_map
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.schemas.errors import StageError, UserError

Labels = NDArray[Any]
"""int16 classes, -1 is ignored; or float32 metres, 0 is unknown."""


class Scenes(NamedTuple):
    """Some images: tokens cls (N, D) and patch (N, P, D), and labels (N, S, S)."""

    cls_ND: NDArray[np.float32]
    patch_NPD: NDArray[np.float32]
    labels_NSS: Labels

    def rows(self, chosen: NDArray[np.int64]) -> Scenes:
        """Those images."""
        return Scenes(self.cls_ND[chosen], self.patch_NPD[chosen], self.labels_NSS[chosen])


@dataclass
class DenseData:
    """One side of a dense benchmark. Cropped labels are kept, because every epoch needs them."""

    cache: FeatureCache
    dataset: Dataset
    folder: Path
    side: int
    convert: Callable[[NDArray[np.int32]], Labels]
    """From a map's values to classes or metres."""
    left_out: int = 0
    """Rows without features, of the blocks that were read."""
    _labels: dict[int, Labels] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.dataset.blocks

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens."""
        return self.cache.definition.encoder.grid

    def block(self, number: int) -> Scenes:
        """The usable rows of a block.

        Raises:
            UserError: a label map is missing or cannot be read.
            StageError: a unit is missing or damaged, or of other rows.
        """
        digest = self.dataset.block_digest(number)
        try:
            cls = self.cache.read_block(0, "cls", number, digest)
            patch = self.cache.read_block(0, "patch", number, digest)
        except KeyError:
            raise StageError(f"{self.cache.name}: block {number} is not extracted.", "unic-pipe evaluate") from None
        valid = cls.valid & patch.valid & self.dataset.kept(number)
        if number not in self._labels:
            self.left_out += int((~valid).sum())
            keys = [k for k, ok in zip(self.dataset.block_keys(number), valid.tolist(), strict=True) if ok]
            self._labels[number] = self._read_labels(keys)
        return Scenes(cls.values[valid], patch.values[valid], self._labels[number])

    def classes(self) -> set[int]:
        """Classes that the label maps show, as far as blocks were read."""
        return {int(c) for labels in self._labels.values() for c in np.unique(labels) if c >= 0}

    def _read_labels(self, keys: list[str]) -> Labels:
        found = [self.convert(centre_square(read_map(self.folder / f"{key}.png"), self.side)) for key in keys]
        none = self.convert(np.zeros((0, self.side, self.side), np.int32))
        return np.stack(found) if found else none

    def batches(self, batch: int, seed: int) -> Iterator[Scenes]:
        """Batches for ever: blocks in random order, the rows of a block in random order, another one in every epoch.
        Raises UserError: there is no usable row."""
        epoch = 0
        while True:
            random = np.random.default_rng([seed, epoch])
            found = False
            for number in random.permutation(self.blocks).tolist():
                scenes = self.block(number)
                order = random.permutation(len(scenes.cls_ND))
                for at in range(0, len(order), batch):
                    found = True
                    yield scenes.rows(order[at : at + batch])
            if not found:
                raise UserError(f"Dataset {self.dataset.manifest.name} has no usable samples.")
            epoch += 1
