"""Small pictures of a dataset's images, and pictures that are kept in `runs/`, so that an unchanged report draws none."""

import base64
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.base import json_digest, seal, seal_holds
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.report.data import Picture, PictureRow

SIDE = 96
"""Pixels of a shown image."""
_FORMAT = 3


def kept_rows(
    inventory: Inventory, made_of: Sequence[object], draw: Callable[[], Sequence[PictureRow]]
) -> tuple[PictureRow, ...]:
    """Rows of pictures that were drawn before from the same (`made_of`, as JSON), or are drawn now."""
    key = f"pictures/{json_digest([_FORMAT, SIDE, *made_of])}.json"
    store = LocalStore(inventory.folder / "runs")
    raw = store.get(key) if store.size(key) is not None else b""
    if seal_holds(raw):  # a changed one is drawn again
        return tuple(
            PictureRow(name, tuple(Picture(*one) for one in pictures)) for name, pictures in json.loads(raw)["rows"]
        )
    rows = tuple(draw())
    body = {"rows": [[row.name, [[p.png, p.alt] for p in row.pictures]] for row in rows]}
    store.put(key, seal((json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()))
    return rows


def thumbnail(dataset: Dataset, row: int) -> NDArray[np.uint8]:
    """The centre crop of an image, as encoders see it but smaller, (`SIDE`, `SIDE`, 3); black where there is none."""
    try:
        image = Image.fromarray(decode_image(dataset.read(row), dataset.manifest.decoding))
    except UndecodableImage:  # its features are valid, so it was decodable when they were made
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    side = min(image.size) * CENTER.center_fraction
    left, top = ((n - side) / 2 for n in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def png(pixels_HW3: NDArray[np.uint8]) -> str:
    """A PNG as base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
