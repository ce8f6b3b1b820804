"""NYU Depth v2's labelled pairs, out of their MATLAB file into folders that can be indexed.

`nyu_depth_v2_labeled.mat` is HDF5 with `images` (pairs, 3, 640, 480) and `depths` (pairs, 640, 480) in metres, both stored
column by column; `splits.mat` numbers the pairs of `trainNdxs` and `testNdxs` from 1.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UserError

MILLIMETRES = 1000.0
CONFIGURATION = """\
samples: {{datasets: {{nyud-train: {{source: {folder}/train/images}}, nyud-test: {{source: {folder}/test/images}}}}}}
evaluate:
  dense:
    nyud: {{kind: depth, train: nyud-train, test: nyud-test,
           train_labels: {folder}/train/depth, test_labels: {folder}/test/depth}}
"""
"""What `unic-pipe.yaml` needs to evaluate on the unpacked folder."""
_SPLITS = {"train": "trainNdxs", "test": "testNdxs"}


def unpack_nyud(
    labelled: Path, splits: Path, folder: Path, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Write `SPLIT/images/NNNN.png` and `SPLIT/depth/NNNN.png` (16 bits, millimetres).

    Files that are there already are written again with the same bytes. `progress` is given the pairs done so far.
    Raises UserError: h5py is not installed, or the files are not those of the dataset.
    """
    try:
        import h5py
    except ImportError:
        raise UserError("NYU Depth v2 is an HDF5 file; h5py is not installed.", 'pip install ".[dense]"') from None
    numbers, store, done = _numbers(splits), LocalStore(folder), 0
    try:
        with h5py.File(labelled, "r") as file:
            images, depths = file["images"], file["depths"]
            for split, pairs in numbers.items():
                for pair in pairs:
                    image_HWC = np.asarray(images[pair - 1]).transpose(2, 1, 0)
                    metres_HW = np.asarray(depths[pair - 1]).transpose(1, 0)
                    depth_HW = np.rint(metres_HW * MILLIMETRES).clip(0, 65_535).astype(np.uint16)
                    store.put(f"{split}/images/{pair:04d}.png", _png(image_HWC))
                    store.put(f"{split}/depth/{pair:04d}.png", _png(depth_HW))
                    done += 1
                    progress(done)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{labelled}: not the labelled pairs of NYU Depth v2 ({error}).", "It is nyu_depth_v2_labeled.mat, 2.8 GB."
        ) from None


def _numbers(splits: Path) -> dict[str, list[int]]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(splits)
        return {split: [int(n) for n in content[name].ravel()] for split, name in _SPLITS.items()}
    except (OSError, KeyError, ValueError, NotImplementedError) as error:
        raise UserError(f"{splits}: not the splits of NYU Depth v2 ({error}).", "It is splits.mat.") from None


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, "PNG")
    return buffer.getvalue()
