"""Pictures of what patch tokens see: their first three principal components as red, green and blue, encoder by encoder.

The components are those of one encoder's tokens of all shown images together, so that equal colours in a row mean alike
tokens; colours of different encoders have nothing to do with each other.

Shapes: N images, P = rows x columns patch tokens, D dimensions.
"""

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unic_pipe.pipeline.cache.needs import FeatureNeed, center_need
from unic_pipe.pipeline.loggers import Picture as Logged
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.evaluation_plans import evaluated_encoders
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.base import json_digest, seal, seal_holds
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.report.data import Picture, PictureRow, Pictures

IMAGES = 6
SIDE = 96
"""Pixels of the shown image; patches are shown at least as large, but stored with one pixel each."""
_FORMAT = 2
_TAILS = (1.0, 99.0)
"""Percentiles of a component that become black and full colour."""


def patch_pictures(inventory: Inventory) -> Pictures | None:
    """The first usable images of a dataset whose patch tokens are in the cache: the test set of a dense benchmark, or
    else the one for the validation loss. None if there are no such tokens, or they cannot be read.

    What was drawn is kept in `runs/`, so that a report of unchanged features reads none.
    """
    config = inventory.config
    for name in dict.fromkeys([*(d.test for d in config.evaluate.dense.values()), *config.distill.validations]):
        dataset = inventory.dataset(name).dataset
        needs = _needs(inventory, dataset) if dataset is not None else []
        if dataset is not None and needs:
            try:
                return _kept(inventory, dataset, needs)
            except UnicPipeError:
                return None  # a picture is no reason to have no report; verify names what is damaged
    return None


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


def _needs(inventory: Inventory, dataset: Dataset) -> list[FeatureNeed]:
    """Encoders whose patch tokens of the first block are recorded."""
    encoders, _ = evaluated_encoders(inventory)
    found = [center_need(inventory.config, dataset.manifest, e.name, e.definition, ("patch",)) for e, _ in encoders]
    return [need for need in found if inventory.plane_coverage(need, 1)[0, "patch"].all()]


def _kept(inventory: Inventory, dataset: Dataset, needs: Sequence[FeatureNeed]) -> Pictures:
    made = [_FORMAT, IMAGES, SIDE, dataset.block_digest(0), [[need.encoder, need.digest] for need in needs]]
    key = f"pictures/{json_digest(made)}.json"
    store = LocalStore(inventory.folder / "runs")
    raw = store.get(key) if store.size(key) is not None else b""
    if seal_holds(raw):  # a changed one is drawn again
        body = json.loads(raw)
        return Pictures(
            body["dataset"], tuple(PictureRow(n, tuple(Picture(*p) for p in pictures)) for n, pictures in body["rows"])
        )
    pictures = _draw(inventory, dataset, needs)
    rows = [[row.name, [[p.png, p.alt] for p in row.pictures]] for row in pictures.rows]
    body = {"dataset": pictures.dataset, "rows": rows}
    store.put(key, seal((json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()))
    return pictures


def _draw(inventory: Inventory, dataset: Dataset, needs: Sequence[FeatureNeed]) -> Pictures:
    from unic_pipe.pipeline.cache.reader import FeatureCache

    blocks = [(n, FeatureCache(inventory.feature_folder(n)).read_block(0, "patch", 0)) for n in needs]
    usable = np.flatnonzero(np.logical_and.reduce([block.valid for _, block in blocks]))[:IMAGES]
    keys = [dataset.block_keys(0)[i] for i in usable.tolist()]
    first = dataset.block_range(0)[0]
    images = [_thumbnail(dataset, first + i) for i in usable.tolist()]
    rows = [PictureRow("image", tuple(Picture(_png(x), key) for x, key in zip(images, keys, strict=True)))]
    for need, block in blocks:
        colours = principal_colours(block.values[usable], need.definition.encoder.grid)
        alts = [f"{need.encoder}, patches of {key}" for key in keys]
        rows.append(PictureRow(need.encoder, tuple(Picture(_png(x), a) for x, a in zip(colours, alts, strict=True))))
    return Pictures(dataset.manifest.name, tuple(rows))


def _thumbnail(dataset: Dataset, row: int) -> NDArray[np.uint8]:
    """The centre crop, as encoders see it but smaller."""
    try:
        image = Image.fromarray(decode_image(dataset.read(row), dataset.manifest.decoding))
    except UndecodableImage:  # its features are valid, so it was decodable when they were made
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    side = min(image.size) * CENTER.center_fraction
    left, top = ((n - side) / 2 for n in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def _png(pixels_HW3: NDArray[np.uint8]) -> str:
    """A PNG as base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
