"""The student's own views of the samples, rendered at its input size.

Shapes: B images of a batch, N usable rows, V views, S image side in pixels.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from pipeline.views.render import render_view
from schemas.errors import StageError
from schemas.recipes import Recipe

KEEP_BYTES = 512 << 20
"""Rendered views are kept in memory when all of them fit in this."""


@dataclass
class StudentImages:
    """Renders views of rows; a view of a row is always the same, so small datasets are rendered once."""

    dataset: Dataset
    recipe: Recipe
    view_seed: int
    size: int
    views: int
    rows_N: NDArray[np.int64]
    """All rows that may be asked for, ascending."""
    # NumPy, because torch would copy with threads of its own, beside those of the training step.
    _kept_VN3SS: NDArray[np.uint8] | None = field(init=False, default=None)
    _have_VN: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.views, len(self.rows_N), 3, self.size, self.size)
        self._have_VN = np.zeros(shape[:2], dtype=np.bool_)
        if np.prod(shape, dtype=np.int64) <= KEEP_BYTES:
            self._kept_VN3SS = np.empty(shape, dtype=np.uint8)

    def batch(self, rows_B: NDArray[np.int64], view: int, pool: Executor) -> Tensor:
        """View number `view` of the rows, uint8 (B, 3, S, S).

        Raises:
            StageError: a sample that was readable during extraction no longer is.
        """
        if self._kept_VN3SS is None:
            return torch.from_numpy(np.stack(list(pool.map(lambda row: self._render(int(row), view), rows_B))))
        place_B = np.searchsorted(self.rows_N, rows_B)
        new = place_B[~self._have_VN[view, place_B]]
        for place, image_3SS in zip(new, pool.map(lambda p: self._render(int(self.rows_N[p]), view), new), strict=True):
            self._kept_VN3SS[view, place] = image_3SS
        self._have_VN[view, new] = True
        return torch.from_numpy(self._kept_VN3SS[view, place_B])

    def _render(self, row: int, view: int) -> NDArray[np.uint8]:
        key = self.dataset.key(row)
        try:
            image_HWC = decode_image(self.dataset.read(row))
        except UndecodableImage as error:
            raise StageError(
                f"Sample {key!r} was decoded during extraction, and cannot be now: {error}.",
                "Image libraries changed; use the environment that extracted the features.",
            ) from None
        rendered: NDArray[np.uint8] = render_view(image_HWC, self.recipe, self.view_seed, key, view, self.size).numpy()
        return rendered
