"""Labels of a flat folder of images, from a file beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.samples.places import Root, where
from unic_pipe.pipeline.samples.shards import LARGEST_LABEL
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError

DEVKIT_FILE = "ILSVRC2012_validation_ground_truth.txt"


def find_labels(config: DatasetConfig, roots: Sequence[Root]) -> Path | None:
    """The labels file that the configuration names (searched in the roots that are folders), or None without one.

    Raises:
        UserError: it is not there.
    """
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


def label_source(config: DatasetConfig, layout: str, roots: Sequence[Root]) -> str:
    """Where labels come from, as manifests record it (`DatasetManifest.label_source`)."""
    if layout == "tars":
        return "cls" if config.label_field is None else f"json:{config.label_field}"
    if config.reader is not None:
        from unic_pipe.pipeline.benchmarks.locate import locate, split_of

        (folder,) = (root for root in roots if isinstance(root, Path))
        return f"{config.reader}:{locate(*split_of(config.reader), folder).signature()}"
    if layout == "class-folders":
        return "folders"
    path = find_labels(config, roots)
    if path is None:
        return "none"
    mapping = path.with_name("meta.mat")
    return f"file:{sha256_of_file(path)}" + (f"+{sha256_of_file(mapping)}" if mapping.is_file() else "")


def read_labels(path: Path, names: Sequence[str]) -> tuple[list[int], tuple[str, ...] | None, str | None]:
    """Labels of the sorted image file `names`: class numbers, class names if known, and a remark if one is due.

    Two forms: one class number per line in the order of the sorted names (counted from 1 if the smallest is 1; with
    the ImageNet devkit's `meta.mat` beside it, put in the order of the sorted WordNet ids, as class folders have it),
    or lines `FILENAME CLASS` (space, tab or comma; a number as it is, or a name: then classes are the sorted names).

    Raises:
        UserError: another number of lines, a file without a label, something that is not a class.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}).", "Check `labels`.") from None
    lines = [line for line in lines if line]
    if lines and all(re.fullmatch(r"[0-9]{1,10}", line) for line in lines):
        return _numbered(path, [int(line) for line in lines], names)
    return (*_named(path, lines, names), None)


def _numbered(
    path: Path, numbers: list[int], names: Sequence[str]
) -> tuple[list[int], tuple[str, ...] | None, str | None]:
    if len(numbers) != len(names):
        raise UserError(
            f"{path}: {len(numbers):,} labels for {len(names):,} images.",
            "One line per image is needed, in the order of the sorted file names.",
        )
    if max(numbers) > LARGEST_LABEL:
        raise UserError(f"{path}: {max(numbers):,} is too large for a class number.", "Check `labels`.")
    mapping = path.with_name("meta.mat")
    if mapping.is_file():
        order = _devkit_order(mapping)
        unknown = next((n for n in numbers if n not in order), None)
        if unknown is not None:
            raise UserError(f"{path}: class {unknown} is not in {mapping}.", "Use both files of one devkit.")
        wnids = tuple(sorted(order.values()))
        position = {wnid: i for i, wnid in enumerate(wnids)}
        return [position[order[n]] for n in numbers], wnids, None
    remark = None
    if path.name == DEVKIT_FILE:
        remark = (
            f"{path}: the devkit's class numbers are not in the order of train's class folders; "
            f"put the devkit's meta.mat beside it ({mapping})."
        )
    start = 1 if min(numbers) == 1 else 0
    return [n - start for n in numbers], None, remark


def _named(path: Path, lines: list[str], names: Sequence[str]) -> tuple[list[int], tuple[str, ...] | None]:
    classes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        fields = re.split(r"[\s,]+", line)
        if len(fields) < 2:
            raise UserError(
                f"{path}: line {number} ({line[:40]!r}) is neither a class number nor `FILENAME CLASS`.",
                "Every line needs the same form.",
            )
        classes[fields[0]] = fields[1]
    found = [classes.get(name, classes.get(name.rpartition(".")[0])) for name in names]
    for name, value in zip(names, found, strict=True):
        if value is None:
            raise UserError(f"{path}: no label for {name}.", "Add the line, or remove the image.")
    values = [value for value in found if value is not None]
    if all(re.fullmatch(r"[0-9]{1,9}", value) for value in values):
        return [int(value) for value in values], None
    known = tuple(sorted(set(values)))
    position = {value: i for i, value in enumerate(known)}
    return [position[value] for value in values], known


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
