"""Benchmarks whose lists are MATLAB files (read with scipy, which scikit-learn brings)."""

from pathlib import Path
from typing import Any

import numpy as np

from unic_pipe.pipeline.benchmarks.listing import Listing, made
from unic_pipe.pipeline.benchmarks.locate import Place
from unic_pipe.schemas.errors import UserError


def read_cars(place: Place) -> Listing:
    """Either `cars_annos.mat` over `car_ims/` (a flag says which are test), or one file for each split."""
    folder = place.folder
    if (folder / "cars_annos.mat").exists():
        records = _matrix(folder / "cars_annos.mat", "annotations")
        wanted = int(place.split == "test")
        pairs = [(str(r["relative_im_path"]), int(r["class"]) - 1) for r in records if int(r["test"]) == wanted]
    else:
        train = place.split == "train"
        file = folder / ("devkit/cars_train_annos.mat" if train else "cars_test_annos_withlabels.mat")
        images = "cars_train" if train else "cars_test"
        pairs = [(f"{images}/{r['fname']}", int(r["class"]) - 1) for r in _matrix(file, "annotations")]
    return made(folder, pairs, [str(n + 1) for n in range(max((label for _, label in pairs), default=-1) + 1)])


def read_flowers(place: Place) -> Listing:
    """`setid.mat` (trnid and valid; tstid) and `imagelabels.mat` (classes counted from 1) over `jpg/image_NNNNN.jpg`."""
    sets = place.folder / "setid.mat"
    numbers = [
        int(n) for name in (("trnid", "valid") if place.split == "train" else ("tstid",)) for n in _matrix(sets, name)
    ]
    labels = _matrix(place.folder / "imagelabels.mat", "labels")
    if max(numbers, default=0) > len(labels):
        raise UserError(f"{sets}: names images beyond the {len(labels):,} of imagelabels.mat.", "Get both files again.")
    pairs = [(f"jpg/image_{n:05d}.jpg", int(labels[n - 1]) - 1) for n in numbers]
    return made(place.folder, pairs, [str(n + 1) for n in range(int(max(labels)))])


def _matrix(file: Path, name: str) -> Any:
    """A variable of a MATLAB file, flat."""
    import scipy.io

    try:
        return np.atleast_1d(scipy.io.loadmat(file, squeeze_me=True)[name]).reshape(-1)
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UserError(f"{file}: cannot be read ({error}).", "Get the file again.") from None
