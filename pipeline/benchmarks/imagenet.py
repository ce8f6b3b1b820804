"""ImageNet-1k, and the test sets that are scored with its probe: what their folders mean in its classes."""

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from unic_pipe.pipeline.benchmarks.locate import Listing, Place, made
from unic_pipe.pipeline.samples.files import image_names
from unic_pipe.pipeline.samples.labels import DEVKIT_FILE, read_labels
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import DatasetManifest

JOIN = "+"
"""Between the WordNet ids of a class that stands for several of ImageNet's."""


@functools.cache
def wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k in the order of their class numbers: sorted. From timm's files, unimported."""
    found = importlib.util.find_spec("timm")
    assert found is not None, "timm is a dependency"
    assert found.origin is not None
    text = (Path(found.origin).parent / "data/_info/imagenet_synsets.txt").read_text(encoding="utf-8")
    return tuple(sorted(text.split()))


def read_imagenet(place: Place) -> Listing:
    """`train/WNID/FILE`; `val/WNID/FILE`, or a flat `val/` with the devkit's ground truth and meta.mat beside it."""
    base = place.folder / ("train" if place.split == "train" else "val")
    synsets = _synsets(base)
    if synsets or place.split == "train":
        return _by_synset(place, base, synsets)
    names = sorted(image_names(base))
    for folder in (base, place.folder, place.folder / "ILSVRC2012_devkit_t12/data"):
        if (folder / DEVKIT_FILE).is_file() and (folder / "meta.mat").is_file():
            found = read_labels(folder / DEVKIT_FILE, base, names)
            pairs = [(f"val/{n}", label) for n, label in zip(names, found.numbers, strict=True) if label is not None]
            return made(place.folder, pairs, found.classes or ())
    raise UserError(
        f"benchmark {place.name}: {base} is flat, and the devkit's {DEVKIT_FILE} and meta.mat are not beside it.",
        f"Put both into {place.folder}, or sort the images into WNID/ folders.",
    )


def read_synsets(place: Place) -> Listing:
    """`WNID/FILE`: any part of ImageNet's classes."""
    return _by_synset(place, place.folder, _synsets(place.folder))


def read_numbered(place: Place) -> Listing:
    """`NUMBER/FILE`: the class number of ImageNet-1k as the folder's name."""
    numbers = sorted(int(e.name) for e in place.folder.iterdir() if re.fullmatch("[0-9]{1,3}", e.name) and e.is_dir())
    pairs = [
        (f"{number}/{name}", label)
        for label, number in enumerate(numbers)
        for name in image_names(place.folder / str(number))
    ]
    return made(place.folder, pairs, [wnids()[number] for number in numbers])


def read_objectnet(place: Place) -> Listing:
    """`images/FOLDER/FILE` and the mappings that the archive ships; only classes that ImageNet-1k has, too.

    `folder_to_objectnet_label.json`: folder → label; `objectnet_to_imagenet_1k.json`: label → names of ImageNet classes,
    joined by `; `; `imagenet_to_label_2012_v2`: those names, one a line; `pytorch_to_imagenet_2012_id.json`: class number
    → its line in there.
    """
    mappings = place.folder / "mappings"
    try:
        labels = json.loads((mappings / "folder_to_objectnet_label.json").read_bytes())
        names = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_bytes())
        lines = json.loads((mappings / "pytorch_to_imagenet_2012_id.json").read_bytes())
        texts = [t.strip() for t in (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()]
        number = {texts[int(line)]: int(place_) for place_, line in lines.items()}
        folders = sorted(folder for folder, label in labels.items() if label in names)
        classes = [JOIN.join(wnids()[number[name.strip()]] for name in names[labels[f]].split(";")) for f in folders]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"{mappings}: the mappings do not fit together ({error!r}).", "Unpack the archive again."
        ) from None
    found = {f: image_names(place.folder / "images" / f) for f in folders if (place.folder / "images" / f).is_dir()}
    pairs = [(f"images/{f}/{n}", label) for label, f in enumerate(folders) for n in found.get(f, ())]
    return made(place.folder, pairs, classes)


def counted_as(train: DatasetManifest, test: DatasetManifest) -> tuple[int, ...]:
    """For each class number of ImageNet-1k's training set, the class of a test set that it counts as; -1: it is not asked.

    Classes are matched by WordNet id. A training set without class names (tars) has those of ImageNet-1k, sorted.
    Raises UserError: the test set has no class names, or none that the training set has.
    """
    if test.classes is None:
        raise UserError(
            f"Dataset {test.name} has no class names, so its classes cannot be matched with ImageNet's.",
            "Give the folder as its authors ship it: evaluate.benchmarks.NAME.root",
        )
    position = {wnid: label for label, name in enumerate(test.classes) for wnid in name.split(JOIN)}
    found = tuple(position.get(wnid, -1) for wnid in train.classes or wnids())
    if max(found, default=-1) < 0:
        raise UserError(
            f"Datasets {train.name} and {test.name} have no class in common by WordNet id.",
            "Is the training set ImageNet-1k?",
        )
    return found


def _synsets(folder: Path) -> list[str]:
    return sorted(e.name for e in folder.iterdir() if re.fullmatch("n[0-9]{8}", e.name) and e.is_dir())


def _by_synset(place: Place, base: Path, synsets: Sequence[str]) -> Listing:
    prefix = "" if base == place.folder else f"{base.name}/"
    pairs = [(f"{prefix}{s}/{name}", label) for label, s in enumerate(synsets) for name in image_names(base / s)]
    return made(place.folder, pairs, synsets)
