"""Pictures of what patch tokens see: their first three principal components as red, green and blue, encoder by encoder.

The components are those of one encoder's tokens of all shown images together, so that equal colours in a row mean alike
tokens; colours of different encoders have nothing to do with each other.

Shapes: N images, P = rows x columns patch tokens, D dimensions.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unic_pipe.pipeline.cache.needs import FeatureNeed, center_need
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.loggers import Picture as Logged
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.evaluation_plans import evaluated_encoders
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.stages.report.data import Picture, PictureRow, Pictures
from unic_pipe.stages.report.thumbnails import SIDE, kept_rows, png, thumbnail

IMAGES = 6
STUDENTS = 4
"""At most so many students are run for it, the first ones; their patch tokens are rarely in the cache."""
_TAILS = (1.0, 99.0)
"""Percentiles of a component that become black and full colour."""


@dataclass(frozen=True)
class _Shown:
    """An encoder whose patch tokens are drawn; `live`: they are computed, because the cache has none."""

    encoder: ResolvedEncoder
    need: FeatureNeed
    live: bool


def patch_pictures(inventory: Inventory) -> Pictures | None:
    """The first usable images of a dataset whose patch tokens are in the cache: the test set of a dense benchmark, or
    else the one for the validation loss; and students, which see the same images now. None if there are no such tokens,
    or they cannot be read.
    """
    config = inventory.config
    for name in dict.fromkeys([*(d.test for d in config.evaluate.dense.values()), *config.distill.validations]):
        dataset = inventory.dataset(name).dataset
        shown = _shown(inventory, dataset) if dataset is not None else []
        if dataset is None or all(one.live for one in shown):
            continue
        rows = _rows(inventory, dataset, shown) or _rows(inventory, dataset, [one for one in shown if not one.live])
        return Pictures(name, rows) if rows else None
    return None


def _rows(inventory: Inventory, dataset: Dataset, shown: Sequence[_Shown]) -> tuple[PictureRow, ...]:
    """None where something cannot be read, or a student cannot be run here: a picture is no reason to have no report, and
    verify names what is damaged."""
    made_of = [IMAGES, dataset.block_digest(0), [[s.need.encoder, s.need.digest] for s in shown]]
    try:
        return kept_rows(inventory, made_of, lambda: _draw(inventory, dataset, shown))
    except (UnicPipeError, OSError):
        return ()


def principal_colours(patch_NPD: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Colours (N, rows, columns, 3) of patch tokens. A component's sign is that in which its largest weight is positive."""
    tokens_TD = patch_NPD.reshape(-1, patch_NPD.shape[-1]).astype(np.float64)
    centred_TD = tokens_TD - tokens_TD.mean(axis=0)
    axes_3D = np.linalg.svd(centred_TD, full_matrices=False)[2][:3]
    largest_3 = axes_3D[np.arange(len(axes_3D)), np.abs(axes_3D).argmax(axis=1)]
    parts_T3 = np.zeros((len(tokens_TD), 3))
    parts_T3[:, : len(axes_3D)] = centred_TD @ (axes_3D * np.sign(largest_3)[:, None]).T
    low_3, high_3 = np.percentile(parts_T3, _TAILS, axis=0)
    scaled_T3 = ((parts_T3 - low_3) / np.maximum(high_3 - low_3, 1e-12)).clip(0, 1)
    colours: NDArray[np.uint8] = np.rint(255 * scaled_T3).astype(np.uint8).reshape(len(patch_NPD), *grid, 3)
    return colours


def sheet(pictures: Pictures) -> Logged:
    """All of them as one picture, a line for every row, each `SIDE` pixels wide and high."""
    whole = Image.new("RGB", (SIDE * max(len(row.pictures) for row in pictures.rows), SIDE * len(pictures.rows)))
    for y, row in enumerate(pictures.rows):
        for x, picture in enumerate(row.pictures):
            drawn = Image.open(io.BytesIO(base64.b64decode(picture.png)))
            whole.paste(drawn.resize((SIDE, SIDE), Image.Resampling.NEAREST), (SIDE * x, SIDE * y))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return Logged(buffer.getvalue())


def _shown(inventory: Inventory, dataset: Dataset) -> list[_Shown]:
    """Encoders whose patch tokens of the first block are recorded, and the first students."""
    found: list[_Shown] = []
    for encoder, role in evaluated_encoders(inventory)[0]:
        need = center_need(inventory.config, dataset.manifest, encoder.name, encoder.definition, ("patch",))
        live = not inventory.plane_coverage(need, 1)[0, "patch"].all()
        if not live or (role == "student" and sum(one.live for one in found) < STUDENTS):
            found.append(_Shown(encoder, need, live))
    return found


def _draw(inventory: Inventory, dataset: Dataset, shown: Sequence[_Shown]) -> list[PictureRow]:
    from unic_pipe.pipeline.cache.reader import FeatureCache

    blocks = {
        s.need.digest: FeatureCache(inventory.feature_folder(s.need)).read_block(0, "patch", 0)
        for s in shown
        if not s.live
    }
    usable = np.flatnonzero(np.logical_and.reduce([block.valid for block in blocks.values()]))[:IMAGES]
    keys = [dataset.block_keys(0)[i] for i in usable.tolist()]
    rows_N = [dataset.block_range(0)[0] + i for i in usable.tolist()]
    images = [thumbnail(dataset, row) for row in rows_N]
    rows = [PictureRow("image", tuple(Picture(png(x), key) for x, key in zip(images, keys, strict=True)))]
    for s in shown:
        patch_NPD = _computed(inventory, dataset, s, rows_N) if s.live else blocks[s.need.digest].values[usable]
        colours = principal_colours(patch_NPD, s.need.definition.encoder.grid)
        alts = [f"{s.need.encoder}, patches of {key}" for key in keys]
        rows.append(PictureRow(s.need.encoder, tuple(Picture(png(x), a) for x, a in zip(colours, alts, strict=True))))
    return rows


def _computed(inventory: Inventory, dataset: Dataset, shown: _Shown, rows: Sequence[int]) -> NDArray[np.float32]:
    """Patch tokens (N, P, D) of these rows' centre crops, computed now."""
    from unic_pipe.pipeline.encoders import load_encoder
    from unic_pipe.pipeline.extraction.forward import EncoderRun, features_of_rows, pick_device
    from unic_pipe.pipeline.process.crew import crew_of_one

    definition = shown.need.definition
    encoder = load_encoder(shown.encoder, device=pick_device(inventory.config.compute.device))
    run = EncoderRun.of(encoder, definition, [(0, "patch")])
    with crew_of_one(definition.compute.threads) as crew:
        [found] = features_of_rows(dataset, rows, [run], len(rows), crew)
    return found.features["patch"]
