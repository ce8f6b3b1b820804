"""Reading the annotation files of the benchmarks that come with lists: text, JSON, MATLAB's, and the pickles of ImageNet-CoG.

Paths are relative to the folder.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from unic_pipe.pipeline.benchmarks.imagenet import read_imagenet, read_numbered, read_objectnet, read_synsets
from unic_pipe.pipeline.benchmarks.locate import Listing, Place, made
from unic_pipe.pipeline.samples.files import image_names
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


_EUROSAT_SEED = 2750


def read_aircraft(place: Place) -> Listing:
    """`images_variant_trainval.txt`: lines `NUMBER VARIANT`; `variants.txt`: the classes in order."""
    classes = _lines(place.folder / "variants.txt")
    split = "trainval" if place.split == "train" else "test"
    file = place.folder / f"images_variant_{split}.txt"
    pairs = [line.partition(" ")[::2] for line in _lines(file)]
    return made(place.folder, [(f"images/{i}.jpg", _number(classes, c, file)) for i, c in pairs], classes)


def read_dtd(place: Place) -> Listing:
    """`labels/train1.txt` and so on: lines `CLASS/FILE`; train is train and val together."""
    parts = ("train1", "val1") if place.split == "train" else ("test1",)
    lines = [line for part in parts for line in _lines(place.folder / f"labels/{part}.txt")]
    return _by_folder(place, [(f"images/{line}", line.partition("/")[0]) for line in lines])


def read_pets(place: Place) -> Listing:
    """`annotations/trainval.txt`: lines `NAME CLASS SPECIES BREED`, classes counted from 1."""
    file = place.folder / f"annotations/{'trainval' if place.split == 'train' else 'test'}.txt"
    fields = [line.split() for line in _lines(file) if not line.startswith("#")]
    try:
        pairs = [(f"images/{name}.jpg", int(number) - 1) for name, number, *_ in fields]
    except ValueError:
        raise _damaged(file) from None
    names = {int(number) - 1: name.rpartition("_")[0] for name, number, *_ in fields}
    return made(place.folder, pairs, [names.get(n, str(n + 1)) for n in range(max(names, default=-1) + 1)])


def read_food(place: Place) -> Listing:
    """`meta/train.json`: class → list of `CLASS/NUMBER`."""
    file = place.folder / f"meta/{place.split}.json"
    content = json_object(file)
    return _by_folder(place, [(f"images/{path}.jpg", name) for name, paths in content.items() for path in paths])


def read_sun(place: Place) -> Listing:
    """`Training_01.txt`: lines `/LETTER/SCENE[/PART]/FILE`, in the folder or beside it; classes as in the training list."""
    training = _sun_list(place, "Training_01.txt")
    wanted = training if place.split == "train" else _sun_list(place, "Testing_01.txt")
    classes = sorted({path.rpartition("/")[0] for path in training})
    pairs = [(path, _number(classes, path.rpartition("/")[0], place.folder)) for path in wanted]
    return made(place.folder, pairs, classes)


def read_inat(place: Place) -> Listing:
    """`train2018.json` in COCO's form: `images` and `annotations` that name an image and a category."""
    year = place.name[-4:]
    file = place.folder / f"{'train' if place.split == 'train' else 'val'}{year}.json"
    content = json_object(file)
    archive = f"train_val{year}/"
    renamed = None if (place.folder / archive).exists() else f"{year}/"  # as torchvision renames it
    try:
        paths = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(paths[a["image_id"]], int(a["category_id"])) for a in content["annotations"]]
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
    except (KeyError, TypeError, ValueError):
        raise _damaged(file) from None
    if renamed is not None:
        pairs = [(renamed + path.removeprefix(archive), label) for path, label in pairs]
    return made(place.folder, pairs, [names.get(n, str(n)) for n in range(max(names, default=-1) + 1)])


def read_eurosat(place: Place) -> Listing:
    """Class folders. Test: of each class the same number of images, those whose names hash lowest; train: the others."""
    classes = sorted(
        entry.name for entry in place.folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    held = place.card.test // len(classes)
    pairs = []
    for label, name in enumerate(classes):
        # Of equal hashes the names decide, which come sorted.
        files = sorted(
            image_names(place.folder / name), key=lambda n: xxhash.xxh3_64_intdigest(n.encode(), _EUROSAT_SEED)
        )
        chosen = files[held:] if place.split == "train" else files[:held]
        pairs += [(f"{name}/{file}", label) for file in chosen]
    return made(place.folder, pairs, classes)


READERS: dict[str, Callable[[Place], Listing]] = {
    "aircraft": read_aircraft,
    "cars": read_cars,
    "cog": read_cog,
    "dtd": read_dtd,
    "eurosat": read_eurosat,
    "flowers": read_flowers,
    "food": read_food,
    "imagenet": read_imagenet,
    "inat": read_inat,
    "numbered": read_numbered,
    "objectnet": read_objectnet,
    "pets": read_pets,
    "sun": read_sun,
    "synsets": read_synsets,
}
"""By `BenchmarkCard.reader`."""


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError: damaged, or something else."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise _damaged(file) from None
    if not isinstance(content, dict):
        raise _damaged(file)
    return content


def _sun_list(place: Place, name: str) -> list[str]:
    inside = place.folder / name
    return [line.strip("/") for line in _lines(inside if inside.exists() else place.folder.parent / name)]


def _by_folder(place: Place, pairs: list[tuple[str, str]]) -> Listing:
    """Classes are the sorted names of the folders in `images/`: the same for both splits, whatever they name."""
    classes = sorted(e.name for e in (place.folder / "images").iterdir() if e.is_dir() and not e.name.startswith("."))
    return made(
        place.folder, [(path, _number(classes, name, place.folder / "images")) for path, name in pairs], classes
    )


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise _damaged(file) from None


def _number(classes: list[str], name: str, file: Path) -> int:
    try:
        return classes.index(name)
    except ValueError:
        raise UserError(f"{file}: {name!r} is not one of its classes.", "Unpack the archive again.") from None


def _damaged(file: Path) -> UserError:
    return UserError(f"{file}: cannot be read as this benchmark's list.", "Unpack the annotation files again.")
