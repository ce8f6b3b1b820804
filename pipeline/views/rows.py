"""Rows to views: every row is read, checked and decoded once, and each view of it rendered for all encoders.

Shapes: N rows (those without an image left out), H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from unic_pipe.pipeline.process.crew import Crew, results
from unic_pipe.pipeline.process.stopwatch import UNTIMED, Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import BadRow, FeatureDefinition
from unic_pipe.schemas.recipes import Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch

    from unic_pipe.pipeline.views.photometric import Pixels
    from unic_pipe.schemas.views import ViewParameters

ROWS_OF_A_PIECE = 16


class Rendering(NamedTuple):
    """One view at one size. Encoders with equal renderings share the pixels."""

    recipe: Recipe
    seed: int
    size: int
    """Image side in pixels."""
    view: int
    where: Literal["host", "device"] = "host"
    """Where the photometric part is done: at once, or by the encoder's device, batch by batch."""

    @classmethod
    def of(cls, definition: FeatureDefinition, view: int, size: int | None = None) -> Rendering:
        """A view as an encoder's features have it; at another size, for another network, it is finished here."""
        if size is None:
            size, where = definition.encoder.image_size, definition.compute.views
            return cls(definition.recipe, definition.view_seed, size, view, where)
        return cls(definition.recipe, definition.view_seed, size, view)

    def draw(self, image_HWC: np.ndarray, key: str) -> tuple[torch.Tensor, ViewParameters]:
        """The view of a decoded image, uint8 (3, size, size), without its photometric part if a device is to do that;
        and what was drawn for it."""
        from unic_pipe.pipeline.views.parameters import view_parameters
        from unic_pipe.pipeline.views.render import render, render_geometry

        height, width = image_HWC.shape[:2]
        parameters = view_parameters(self.recipe, self.seed, key, self.view, (height, width))
        make = render if self.where == "host" else render_geometry
        return make(image_HWC, parameters, self.recipe, self.size), parameters


def views_of_rows(
    dataset: Dataset, rows: Sequence[int], renderings: Iterable[Rendering], crew: Crew, clock: Stopwatch,
    pinned: bool = False,
) -> tuple[dict[Rendering, Pixels], dict[int, BadRow]]:  # fmt: skip
    """Each rendering of the decodable rows in the given order, and by place in `rows` those that are not.

    An image is dropped as soon as it is rendered: a block of full-size photographs would not fit in memory. `pinned`
    memory is what an accelerator reads without the CPU's help. `clock` may time "read", "decode" and "render", if the
    crew is one of one. Raises StageError: samples that are not what was indexed.
    """
    import torch

    from unic_pipe.pipeline.views.photometric import Pixels

    count, reads = len(rows), dataset.read_many(rows)
    views = {r: torch.empty((count, 3, r.size, r.size), dtype=torch.uint8, pin_memory=pinned) for r in renderings}
    drawn: dict[Rendering, dict[int, ViewParameters]] = {r: {} for r in views}
    unreadable: dict[int, BadRow] = {}

    def render(places: range) -> None:
        for place in places:
            key = dataset.key(rows[place])
            try:
                with clock.time("read"):
                    data = reads[place]()
                with clock.time("decode"):
                    image_HWC = decode_image(data, dataset.manifest.decoding)
            except UndecodableImage as error:
                unreadable[place] = BadRow(offset=place, key=key, reason=f"undecodable: {error}")
                continue
            with clock.time("render"):
                for rendering, x_N3HW in views.items():
                    x_N3HW[place], drawn[rendering][place] = rendering.draw(image_HWC, key)

    slices = [range(start, min(start + ROWS_OF_A_PIECE, count)) for start in range(0, count, ROWS_OF_A_PIECE)]
    results([crew.start(render, places) for places in slices])
    usable = [place for place in range(count) if place not in unreadable]
    pixels = {}
    for rendering, x_N3HW in views.items():
        todo = tuple(drawn[rendering][place] for place in usable) if rendering.where == "device" else None
        pixels[rendering] = Pixels(x_N3HW[usable] if unreadable else x_N3HW, rendering.recipe, todo)
    return pixels, dict(sorted(unreadable.items()))


def finished_views(
    dataset: Dataset, rows: Sequence[int], renderings: Sequence[Rendering], crew: Crew, clock: Stopwatch = UNTIMED
) -> list[torch.Tensor]:
    """Each rendering of rows that could be used when their features were extracted, uint8 (N, 3, size, size).
    Raises StageError: samples that are not what was indexed, or one that cannot be decoded any more."""
    pixels, unreadable = views_of_rows(dataset, rows, renderings, crew, clock)
    require_readable(unreadable)
    return [pixels[rendering].x_N3HW for rendering in renderings]


def require_readable(unreadable: Mapping[int, BadRow]) -> None:
    """Raises StageError: a sample that was decoded before cannot be decoded now."""
    for bad in unreadable.values():
        raise StageError(
            f"Sample {bad.key!r} was decoded during extraction, and cannot be now: {bad.reason}.",
            "Image libraries changed; use the environment that extracted the features.",
        )
