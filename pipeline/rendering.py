"""Rendering a block: every row is read, checked and decoded once, and each view of it rendered for all encoders.

Shapes: N rows of the block (those without an image left out), H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.pieces import Crew, results
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from schemas.features import BadRow
from schemas.recipes import Recipe

if TYPE_CHECKING:
    import torch

ROWS_OF_A_PIECE = 16

Rendering = tuple[Recipe, int, int, int]
"""(recipe, seed, size in pixels, view): encoders with equal renderings share the pixels."""


def render_block(
    crew: Crew, dataset: Dataset, block: int, renderings: Sequence[Rendering], pinned: bool = False
) -> tuple[dict[Rendering, torch.Tensor], dict[int, BadRow]]:
    """Each rendering of the decodable rows, uint8 (N, 3, H, W) in row order, and by offset the rows that are not.

    An image is dropped as soon as it is rendered: a block of full-size photographs would not fit in memory. `pinned`
    memory is what an accelerator reads without the CPU's help.

    Raises:
        StageError: samples that are not what was indexed.
    """
    import torch

    first, count = dataset.block_range(block)
    reads = dataset.read_many(range(first, first + count))
    views = {r: torch.empty((count, 3, r[2], r[2]), dtype=torch.uint8, pin_memory=pinned) for r in renderings}
    slices = [range(start, min(start + ROWS_OF_A_PIECE, count)) for start in range(0, count, ROWS_OF_A_PIECE)]
    pieces = [crew.start(_render_rows, dataset.block_keys(block), reads, offsets, views) for offsets in slices]
    unreadable = {offset: bad for found in results(pieces) for offset, bad in found.items()}
    if unreadable:
        usable = [offset for offset in range(count) if offset not in unreadable]
        views = {rendering: x_N3HW[usable] for rendering, x_N3HW in views.items()}
    return views, unreadable


def _render_rows(
    keys: Sequence[str], reads: Sequence[Callable[[], bytes]], offsets: range, views: dict[Rendering, torch.Tensor]
) -> dict[int, BadRow]:
    """Fill in the views of some rows; the rows that cannot be decoded."""
    from pipeline.views.render import render_view

    unreadable: dict[int, BadRow] = {}
    for offset in offsets:
        try:
            image_HWC = decode_image(reads[offset]())
        except UndecodableImage as error:
            unreadable[offset] = BadRow(offset=offset, key=keys[offset], reason=f"undecodable: {error}")
            continue
        for (recipe, seed, size, view), x_N3HW in views.items():
            x_N3HW[offset] = render_view(image_HWC, recipe, seed, keys[offset], view, size)
    return unreadable
