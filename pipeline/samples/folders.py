"""Folders of images as rows: class folders, flat folders, and listed images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import xxhash

from unic_pipe.pipeline.samples.classes import whole_numbers
from unic_pipe.pipeline.samples.files import NAMES, class_folders, list_images
from unic_pipe.pipeline.samples.left_out import LeftOut
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.samples.table import make_rows
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import ImageNames

if TYPE_CHECKING:
    from unic_pipe.pipeline.benchmarks.locate import Listing


@dataclass(frozen=True)
class ImageFolder:
    """Images below one folder: a class folder, or the flat folder itself."""

    path: str
    """Relative to a root; empty for the root itself."""
    folder: Path
    key: str
    """Prefix of the keys: `CLASS/`, or nothing."""
    label: int | None
    names: tuple[str, ...]
    """Sorted paths of the images relative to `folder`."""
    left: LeftOut = field(default_factory=LeftOut)
    """What else is below it."""
    deleted: frozenset[str] = frozenset()
    """Those of `names` that are indexed and no longer there."""

    def shard(self, name: str) -> str:
        """Path of an image relative to the root."""
        return f"{self.path}/{name}" if self.path else name


def list_folders(
    source: Source, rule: ImageNames = NAMES, by_place: bool = False, recorded: Collection[str] = ()
) -> list[ImageFolder]:
    """What a folder source holds now: one `ImageFolder` per class, or a single one.

    A class's number is its place among the sorted folder names. Names that are all whole numbers are the numbers
    themselves, and a single folder is no class, unless `by_place` (indexes made before that). Folders that are `recorded`
    may have lost their images.
    Raises UserError: a class folder without images, file names that are not UTF-8, lists that do not hold.
    """
    assert source.folder is not None
    if source.layout == "listed":
        return [ImageFolder("", source.folder, "", None, _checked(listed(source).files, source.folder))]
    if source.layout == "flat-folder":
        names, left = list_images(source.folder, rule, deep=False)
        return [ImageFolder(source.base, source.folder, "", None, _checked(names, source.folder), left)]
    entries = _checked(class_folders(source.folder), source.folder)
    labels: Sequence[int | None] = range(len(entries))
    if not by_place:
        labels = [None] if len(entries) == 1 else whole_numbers(entries) or labels
    folders = []
    for label, name in zip(labels, entries, strict=True):
        folder = source.folder / name
        names, left = list_images(folder, rule)
        path = Path(source.base, name).as_posix()
        if not names and path not in recorded:
            also = "".join(f"; {line}" for line in left.lines())
            raise UserError(
                f"{folder}: a class folder without images{also}.",
                "Remove it, or add its images (a class's number is its place among the sorted folder names).",
            )
        folders.append(ImageFolder(path, folder, f"{name}/", label, _checked(names, folder), left))
    return folders


def listed(source: Source) -> Listing:
    """The images and labels that a benchmark's own lists name.
    Raises UserError: files are missing or damaged, or there are more or fewer images than the benchmark has."""
    from unic_pipe.pipeline.benchmarks.locate import locate, split_of
    from unic_pipe.pipeline.benchmarks.read import listing

    assert source.folder is not None
    return listing(locate(*split_of(source.text), source.folder))


def with_deleted(folder: ImageFolder, gone: Collection[str]) -> ImageFolder:
    """A folder with the images that were deleted from it: lists of labels may still count them."""
    start = folder.shard("")
    deleted = frozenset(path.removeprefix(start) for path in gone if path.startswith(start))
    return replace(folder, names=tuple(sorted({*folder.names, *deleted})), deleted=deleted)


def count_images(folder: Path, layout: str) -> int:
    """Number of images now in a class folder or flat folder."""
    return len(list_images(folder, deep=layout != "flat-folder")[0])


def scan_folder(folder: ImageFolder, names: tuple[str, ...], rule: ImageNames = NAMES) -> pa.Table:
    """Hash the named images of a folder; rows in that order, keyed by path inside the source without the ending.
    Raises UserError: an image that cannot be read."""
    hashes, sizes = [], []
    for name in names:
        try:
            data = require_regular(folder.folder / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{folder.shard(name)}: cannot be read ({error.strerror}).", "Check the file, or remove it."
            ) from None
        hashes.append(xxhash.xxh3_128_digest(data))
        sizes.append(len(data))
    return make_rows(
        [folder.key + (name[: -len(rule.image) - 1] if rule.image else name.rpartition(".")[0]) for name in names],
        [folder.shard(name) for name in names],
        [0] * len(names),
        sizes,
        hashes,
        [folder.label] * len(names),
    )


def _checked(names: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # how Python shows bytes that are not UTF-8
            raise UserError(f"{folder}: the name {name!r} is not UTF-8.", "Rename it.")
    return names
