"""Views of the samples, rendered at the input sizes of the students (and of teachers in the loop).

Shapes: B images of a batch, N usable rows, V views, S image side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.stages.distill.clock import Times

KEEP_BYTES = 512 << 20
"""Rendered views are kept in memory when all of them fit in this."""


@dataclass
class ViewImages:
    """Renders views of rows at every input size that is needed, from one decoding.

    A view of a row is always the same, so small datasets are rendered once.
    """

    dataset: Dataset
    recipe: Recipe
    view_seed: int
    sizes: tuple[int, ...]
    views: int
    """Views 0 to `views` - 1 are kept once they are rendered, if they fit; 0: none is."""
    rows_N: NDArray[np.int64]
    """All rows that may be asked for, ascending."""
    times: Times = field(default_factory=Times)
    # NumPy, because torch would copy with threads of its own, beside those of the training step.
    _kept: dict[int, NDArray[np.uint8]] = field(init=False, default_factory=dict)
    """By size, (V, N, 3, S, S)."""
    _have: dict[int, NDArray[np.bool_]] = field(init=False, default_factory=dict)
    """By size, (V, N)."""

    def __post_init__(self) -> None:
        shape = (self.views, len(self.rows_N))
        self._have = {size: np.zeros(shape, dtype=np.bool_) for size in self.sizes}
        if 0 < math.prod(shape) * sum(3 * size * size for size in self.sizes) <= KEEP_BYTES:
            self._kept = {size: np.empty((*shape, 3, size, size), dtype=np.uint8) for size in self.sizes}

    def batch(
        self, rows_B: NDArray[np.int64], view: int, pool: Executor, sizes: tuple[int, ...] = ()
    ) -> dict[int, Tensor]:
        """View number `view` of the rows by input size (`sizes`, or all), uint8 (B, 3, S, S).

        Raises:
            StageError: a sample that was readable during extraction no longer is.
        """
        sizes = sizes or self.sizes
        if not self._kept:
            rendered = list(self._rendered(rows_B, view, pool, sizes))
            return {size: torch.from_numpy(np.stack([x[i] for x in rendered])) for i, size in enumerate(sizes)}
        place_B = np.searchsorted(self.rows_N, rows_B)
        new = place_B[~np.logical_and.reduce([self._have[size][view, place_B] for size in sizes])]
        for place, images in zip(new, self._rendered(self.rows_N[new], view, pool, sizes), strict=True):
            for size, image_3SS in zip(sizes, images, strict=True):
                self._kept[size][view, place] = image_3SS
        for size in sizes:
            self._have[size][view, new] = True
        return {size: torch.from_numpy(self._kept[size][view, place_B]) for size in sizes}

    def _rendered(
        self, rows: NDArray[np.int64], view: int, pool: Executor, sizes: tuple[int, ...]
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """Each row at these sizes, in order."""
        wanted = [int(row) for row in rows]
        return pool.map(self._render, wanted, self.dataset.read_many(wanted), repeat(view), repeat(sizes))

    def _render(
        self, row: int, read: Callable[[], bytes], view: int, sizes: tuple[int, ...]
    ) -> list[NDArray[np.uint8]]:
        """One image at these sizes."""
        key = self.dataset.key(row)
        with self.times.spent("reading"):
            raw = read()
        try:
            with self.times.spent("decoding"):
                image_HWC = decode_image(raw, self.dataset.manifest.decoding)
        except UndecodableImage as error:
            raise StageError(
                f"Sample {key!r} was decoded during extraction, and cannot be now: {error}.",
                "Image libraries changed; use the environment that extracted the features.",
            ) from None
        with self.times.spent("rendering"):
            return [render_view(image_HWC, self.recipe, self.view_seed, key, view, size).numpy() for size in sizes]
