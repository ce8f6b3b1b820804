"""Rendering a block: every row is read, checked and decoded once, and each view of it rendered for all encoders.

Shapes: N rows of the block (those without an image left out), H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pipeline.pieces import Crew, results
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from schemas.features import BadRow
from schemas.recipes import Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.views.photometric import Pixels
    from schemas.views import ViewParameters

ROWS_OF_A_PIECE = 16

Where = Literal["host", "device"]
"""Where the photometric part of a view is done: at once, or by the encoder's device, batch by batch."""

Rendering = tuple[Recipe, int, int, int, Where]
"""(recipe, seed, size in pixels, view, where): encoders with equal renderings share the pixels."""


def draw(
    image_HWC: np.ndarray, recipe: Recipe, seed: int, key: str, view: int, size: int, where: Where
) -> tuple[torch.Tensor, ViewParameters]:
    """A view of a decoded image, uint8 (3, size, size), without its photometric part if the device is to do that."""
    from pipeline.views.parameters import view_parameters
    from pipeline.views.render import render, render_geometry

    height, width = image_HWC.shape[:2]
    parameters = view_parameters(recipe, seed, key, view, (height, width))
    return (render if where == "host" else render_geometry)(image_HWC, parameters, recipe, size), parameters


def render_block(
    crew: Crew, dataset: Dataset, block: int, renderings: Sequence[Rendering], pinned: bool = False
) -> tuple[dict[Rendering, Pixels], dict[int, BadRow]]:
    """Each rendering of the decodable rows in row order, and by offset the rows that are not.

    An image is dropped as soon as it is rendered: a block of full-size photographs would not fit in memory. `pinned`
    memory is what an accelerator reads without the CPU's help.

    Raises:
        StageError: samples that are not what was indexed.
    """
    import torch

    from pipeline.views.photometric import Pixels

    first, count = dataset.block_range(block)
    reads = dataset.read_many(range(first, first + count))
    views = {r: torch.empty((count, 3, r[2], r[2]), dtype=torch.uint8, pin_memory=pinned) for r in renderings}
    slices = [range(start, min(start + ROWS_OF_A_PIECE, count)) for start in range(0, count, ROWS_OF_A_PIECE)]
    drawn: dict[Rendering, dict[int, ViewParameters]] = {r: {} for r in renderings}
    pieces = [crew.start(_render_rows, dataset.block_keys(block), reads, offsets, views, drawn) for offsets in slices]
    unreadable = {offset: bad for found in results(pieces) for offset, bad in found.items()}
    usable = [offset for offset in range(count) if offset not in unreadable]
    pixels = {}
    for rendering, x_N3HW in views.items():
        recipe, where = rendering[0], rendering[-1]
        todo = tuple(drawn[rendering][offset] for offset in usable) if where == "device" else None
        pixels[rendering] = Pixels(x_N3HW[usable] if unreadable else x_N3HW, recipe, todo)
    return pixels, unreadable


def _render_rows(
    keys: Sequence[str],
    reads: Sequence[Callable[[], bytes]],
    offsets: range,
    views: dict[Rendering, torch.Tensor],
    drawn: dict[Rendering, dict[int, ViewParameters]],
) -> dict[int, BadRow]:
    """Fill in the views of some rows and what was drawn for them; the rows that cannot be decoded."""
    unreadable: dict[int, BadRow] = {}
    for offset in offsets:
        try:
            image_HWC = decode_image(reads[offset]())
        except UndecodableImage as error:
            unreadable[offset] = BadRow(offset=offset, key=keys[offset], reason=f"undecodable: {error}")
            continue
        for rendering, x_N3HW in views.items():
            recipe, seed, size, view, where = rendering
            x_N3HW[offset], drawn[rendering][offset] = draw(image_HWC, recipe, seed, keys[offset], view, size, where)
    return unreadable
