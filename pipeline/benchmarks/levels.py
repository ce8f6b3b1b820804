"""ImageNet-CoG: five levels of 1,000 classes of ImageNet-21k, by the two pickles that its authors publish."""

import pickle
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.benchmarks.listing import Listing, made
from unic_pipe.pipeline.benchmarks.locate import Place
from unic_pipe.schemas.errors import UserError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
"""What lists of file names in NumPy arrays are made of. A pickle could run any program otherwise."""


def read_cog(place: Place) -> Listing:
    """Level N: `cog_levels_mapping_file.pkl`[N - 1] are its WordNet ids, `cog_concepts_split_file.pkl` gives each one's
    train and test images, as `WNID/FILE` below the folder."""
    level = int(place.name[-1])
    mapping = place.folder / "cog_levels_mapping_file.pkl"
    splits_file = place.folder / "cog_concepts_split_file.pkl"
    try:
        wnids = sorted(str(wnid) for wnid in _unpickle(mapping)[level - 1])
    except (LookupError, TypeError):
        raise UserError(f"{mapping}: not a list of five levels.", "Get the file again.") from None
    splits = _unpickle(splits_file)
    pairs = []
    for label, wnid in enumerate(wnids):
        try:
            files = [str(path).strip("/\\").replace("\\", "/") for path in splits[wnid][place.split]]
        except (LookupError, TypeError):
            raise UserError(
                f"{splits_file}: has no {place.split} images of {wnid}.", "Use both files of one release."
            ) from None
        pairs += [(path, label) for path in files]
    return made(place.folder, pairs, wnids)


class _Names(pickle.Unpickler):
    """Loads containers, texts and NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, if it is one of the allowed ones."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _unpickle(file: Path) -> Any:
    try:
        with file.open("rb") as handle:
            return _Names(handle).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(
            f"{file}: refused ({error}).", "It should hold lists of names only: get it again from its authors."
        ) from None
