"""Labels of a flat folder of images, from a file beside it."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.samples.classes import whole_numbers
from unic_pipe.pipeline.samples.files import class_folders
from unic_pipe.pipeline.samples.lists import listed_classes, read_text
from unic_pipe.pipeline.samples.places import Root, where
from unic_pipe.pipeline.samples.shards import LARGEST_LABEL, no_label
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError

DEVKIT_FILE = "ILSVRC2012_validation_ground_truth.txt"
OLD_FOLDERS = "folders"
"""The label source of class folders by name; before numbers were kept, of all class folders."""
_NUMBER = re.compile(r"[0-9]{1,10}(\.0+)?")
"""A class number; pandas writes `3.0` where a column has gaps."""
_NUMERIC = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", re.IGNORECASE)


def find_labels(config: DatasetConfig, roots: Sequence[Root]) -> Path | None:
    """The labels file that the configuration names (searched in the roots that are folders), or None without one.
    Raises UserError: it is not there."""
    if config.labels is None:
        return None
    for root in (root for root in roots if isinstance(root, Path)):
        path = root / Path(config.labels).expanduser()
        if path.is_file():
            return path
    raise UserError(
        f"labels file {config.labels!r} is not there (looked in {', '.join(map(where, roots))}).",
        "Set `labels`, or add its folder to `samples.roots`.",
    )


def label_source(config: DatasetConfig, source: Source, roots: Sequence[Root]) -> str:
    """Where labels come from, as manifests record it (`DatasetManifest.label_source`)."""
    shift = f"-{config.first_class}" if config.first_class else ""
    if source.layout == "tars":
        return ("cls" if config.label_field is None else f"json:{config.label_field}") + shift
    if config.reader is not None:
        from unic_pipe.pipeline.benchmarks.locate import locate, split_of

        (folder,) = (root for root in roots if isinstance(root, Path))
        return f"{config.reader}:{locate(*split_of(config.reader), folder).signature()}"
    if source.layout == "class-folders":
        assert source.folder is not None
        names = class_folders(source.folder)
        kind = "folders:one" if len(names) == 1 else "folders:numbers" if whole_numbers(names) else OLD_FOLDERS
        return kind + shift
    path = find_labels(config, roots)
    if path is None:
        return "none"
    mapping = path.with_name("meta.mat")
    digests = sha256_of_file(path) + (f"+{sha256_of_file(mapping)}" if mapping.is_file() else "")
    return f"list:{digests}{shift}"


@dataclass(frozen=True)
class Labels:
    """Labels of images, in their order; None where an image has none."""

    numbers: tuple[int | None, ...]
    classes: tuple[str, ...] | None
    """Class names in the order of the numbers; None where the file has numbers."""
    remarks: tuple[str, ...] = ()


def read_labels(path: Path, folder: Path, names: Sequence[str], deleted: Collection[str] = ()) -> Labels:
    """Labels of the images `names` (sorted) of a folder; lists that name files need not name those that were `deleted`.

    Two forms: one class number per line in the order of the names (with the ImageNet devkit's `meta.mat` beside it, put
    in the order of the sorted WordNet ids, as class folders have it), or lines `FILENAME CLASS` (`listed_classes`), where
    a class is a number as it is, or a name: then numbers follow the sorted names. `-1`, `null` and nothing are no label.
    Raises UserError: another number of lines, a file without a line or with two, something that is not a class.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if len(lines) != len(names):
        lines = [line for line in lines if line]
    if any(lines) and all(_NUMBER.fullmatch(line) or no_label(line) for line in lines):
        return _numbered(path, lines, names, deleted)
    found, remark = listed_classes(path, text, folder, names, deleted)
    remarks = () if remark is None else (remark,)
    known = [line for line in found if not no_label(line.value)]
    if known and all(_NUMERIC.fullmatch(line.value) for line in known):
        odd = next((line for line in known if not _NUMBER.fullmatch(line.value)), None)
        if odd is not None:
            raise UserError(f"{path}: line {odd.number}: {odd.value!r} is no class number.", "Check `labels`.")
        return Labels(tuple(_class_numbers(path, [line.value for line in found])), None, remarks)
    values = [None if no_label(line.value) else unicodedata.normalize("NFC", line.value) for line in found]
    classes = tuple(sorted({value for value in values if value is not None}))
    position = {value: i for i, value in enumerate(classes)}
    return Labels(tuple(None if value is None else position[value] for value in values), classes, remarks)


def _class_numbers(path: Path, values: Sequence[str]) -> list[int | None]:
    numbers = [None if no_label(value) else int(value.partition(".")[0]) for value in values]
    largest = max(number for number in numbers if number is not None)
    if largest > LARGEST_LABEL:
        raise UserError(f"{path}: {largest:,} is too large for a class number.", "Check `labels`.")
    return numbers


def _numbered(path: Path, lines: Sequence[str], names: Sequence[str], deleted: Collection[str]) -> Labels:
    if deleted and len(lines) == len(names) - len(deleted):
        raise UserError(
            f"{path}: {len(lines):,} labels for {len(lines):,} images, but of those that were indexed {len(deleted):,} "
            f"{'is' if len(deleted) == 1 else 'are'} deleted or renamed (first: {min(deleted)}): which line is whose?",
            "Write lines FILENAME CLASS, which hold whatever is deleted or renamed.",
        )
    if len(lines) != len(names):
        raise UserError(
            f"{path}: {len(lines):,} labels for {len(names):,} images.",
            "One line per image is needed, in the order of the sorted file names.",
        )
    numbers = _class_numbers(path, lines)
    mapping = path.with_name("meta.mat")
    if mapping.is_file():
        order = _devkit_order(mapping)
        unknown = next((n for n in numbers if n not in order), None)
        if unknown is not None:
            raise UserError(f"{path}: class {unknown} is not in {mapping}.", "Use both files of one devkit.")
        wnids = tuple(sorted(order.values()))
        position = {wnid: i for i, wnid in enumerate(wnids)}
        return Labels(tuple(position[order[n]] for n in numbers if n is not None), wnids)
    remark = (
        f"{path}: the devkit's class numbers are not in the order of train's class folders; "
        f"put the devkit's meta.mat beside it ({mapping})."
    )
    return Labels(tuple(numbers), None, (remark,) if path.name == DEVKIT_FILE else ())


def _devkit_order(mapping: Path) -> dict[int, str]:
    """WordNet id of each ILSVRC2012_ID (1 to 1000) in the devkit's `meta.mat`; synsets with children are not classes."""
    import scipy.io

    try:
        synsets: Any = scipy.io.loadmat(mapping, squeeze_me=True)["synsets"]
        return {
            int(number): str(wnid)
            for number, wnid, children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if int(children) == 0
        }
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UserError(f"{mapping}: not the devkit's meta.mat ({error}).", "Copy it again from the devkit.") from None
