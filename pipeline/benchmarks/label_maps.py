"""Label maps of images: read from PNGs, brought to the pixels that encoders see, and what they say about patches.

Encoders are measured on the centre crop (`CENTER`): the short side resized, the centre cut out. A map takes the same way
by nearest neighbour, so that a value is never a mixture of two.

Shapes: H, W a map's height and width, S side of the square that is scored, G x G patches (P in all), C classes.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.protocols import DenseConfig
from unic_pipe.schemas.recipes import CENTER

IGNORED = -1
"""Class of pixels that are neither learnt nor scored."""


_DIGITS = 32
_WANTED = "It has to hold KEY.png for every sample KEY of the dataset."


def require_maps(folder: Path) -> None:
    """Look at a folder of label maps before its dataset is indexed. Raises UserError: not there, or without a PNG."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of label maps.", _WANTED)
    if next(folder.rglob("*.png"), None) is None:
        raise UserError(f"{folder}: no label maps in it.", _WANTED)


def maps_digest(folder: Path, keys: Iterable[str], memory: LocalStore | None = None) -> str:
    """Identity of a folder of label maps by the names and contents of its PNGs, 32 hex digits. In folders below it, those
    count that a key names (`street/a` for `street/a.png`).

    Thousands of files take seconds to read, so that the answer is kept in `memory` for as long as their names, sizes and
    times stay the same. Raises UserError: there is no such folder, one of its maps cannot be read, or a key has none.
    """
    wanted = [f"{key}.png" for key in keys]
    try:
        found = {e.name: e.stat() for e in os.scandir(folder) if e.name.endswith(".png")}
        found |= {name: (folder / name).stat() for name in wanted if "/" in name and (folder / name).is_file()}
        if missing := [name for name in wanted if name not in found]:
            count = f"{len(missing):,} of {len(wanted):,} label maps are not there"
            raise UserError(f"{folder}: {count} (first: {missing[0]}).", _WANTED)
        state = xxhash.xxh3_128()
        for name, stat in sorted(found.items()):
            state.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        key = f"label-maps/{state.hexdigest()}"
        if memory is not None and memory.size(key) == _DIGITS:
            return memory.get(key).decode()
        content = xxhash.xxh3_128()
        for name in sorted(found):
            content.update(f"{name}\0{xxhash.xxh3_128_hexdigest((folder / name).read_bytes())}\0".encode())
    except OSError as error:
        raise UserError(f"{folder}: label maps cannot be read ({error.strerror}).", _WANTED) from None
    if memory is not None:
        memory.put(key, content.hexdigest().encode())
    return content.hexdigest()


def read_map(path: Path) -> NDArray[np.int32]:
    """The values of a PNG with one channel (H, W); of one with a palette, the indices.
    Raises UserError: no such file, or not such a PNG."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            values = np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"There is no label map {path}.", _WANTED) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a PNG that can be read ({error}).") from None
    if values.ndim != 2:
        raise UserError(f"{path}: a label map has one channel, this PNG has {values.shape[-1]}.")
    return values.astype(np.int32)


def centre_square(values_HW: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """The centre crop (S, S) of a map, as `render` makes that of the image, by nearest neighbour."""
    height, width = values_HW.shape
    short = round(side / CENTER.center_fraction)
    # As torchvision sizes the longer side, and centres the crop in it.
    rows, columns = (short if n == min(height, width) else int(short * n / min(height, width)) for n in (height, width))
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    row_S = np.floor((np.arange(side) + top + 0.5) * height / rows).astype(np.int64).clip(0, height - 1)
    column_S = np.floor((np.arange(side) + left + 0.5) * width / columns).astype(np.int64).clip(0, width - 1)
    square_SS: NDArray[np.int32] = values_HW[row_S[:, None], column_S[None, :]]
    return square_SS


def class_map(values: NDArray[np.int32], config: DenseConfig) -> NDArray[np.int16]:
    """Class numbers from 0, `IGNORED` where a value is no class."""
    assert config.classes is not None
    number = values - config.first_class
    return np.where((number >= 0) & (number < config.classes), number, IGNORED).astype(np.int16)


def depth_map(values: NDArray[np.int32], config: DenseConfig) -> NDArray[np.float32]:
    """Metres; 0 where the depth is unknown or above `max_depth`."""
    metres = (values * config.metres).astype(np.float32)
    return np.where(metres <= config.max_depth, metres, 0).astype(np.float32)


def patch_histograms(labels_SS: NDArray[np.int16], grid: tuple[int, int], classes: int) -> NDArray[np.float32]:
    """The share of each class in each patch (P, C); of pixels that are ignored nothing, so rows sum to 1 or to 0."""
    side = labels_SS.shape[0]
    row_S, column_S = (np.arange(side) * n // side for n in grid)
    patch_SS = row_S[:, None] * grid[1] + column_S[None, :]
    known = labels_SS >= 0
    places = patch_SS[known] * classes + labels_SS[known]
    counts_PC = np.bincount(places, minlength=grid[0] * grid[1] * classes).reshape(-1, classes).astype(np.float32)
    shares: NDArray[np.float32] = counts_PC / np.maximum(counts_PC.sum(axis=1, keepdims=True), 1)
    return shares
