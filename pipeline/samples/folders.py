"""Folders of images as rows: class folders, flat folders, and listed images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import xxhash

from unic_pipe.pipeline.samples.classes import whole_numbers
from unic_pipe.pipeline.samples.files import class_folders, image_names, is_image
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.samples.table import make_rows
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.errors import UserError

if TYPE_CHECKING:
    from unic_pipe.pipeline.benchmarks.listing import Listing


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

    def shard(self, name: str) -> str:
        """Path of an image relative to the root."""
        return f"{self.path}/{name}" if self.path else name


def list_folders(source: Source, by_place: bool = False) -> list[ImageFolder]:
    """What a folder source holds now: one `ImageFolder` per class, or a single one.

    A class's number is its place among the sorted folder names. Names that are all whole numbers are the numbers
    themselves, and a single folder is no class, unless `by_place` (indexes made before that).

    Raises:
        UserError: a class folder without images, file names that are not UTF-8, lists that do not hold.
    """
    assert source.folder is not None
    if source.layout == "listed":
        return [ImageFolder("", source.folder, "", None, _checked(listed(source).files, source.folder))]
    if source.layout == "flat-folder":
        names = tuple(sorted(e.name for e in os.scandir(source.folder) if is_image(e.name) and os.path.isfile(e)))
        return [ImageFolder(source.base, source.folder, "", None, _checked(names, source.folder))]
    entries = class_folders(source.folder)
    labels = range(len(entries)) if by_place else _folder_labels(entries)
    folders = []
    for label, name in zip(labels, entries, strict=True):
        folder = source.folder / name
        names = _checked(tuple(sorted(image_names(folder))), folder)
        if not names:
            raise UserError(
                f"{folder}: a class folder without images.",
                "Remove it, or add its images (a class's number is its place among the sorted folder names).",
            )
        folders.append(ImageFolder(Path(source.base, name).as_posix(), folder, f"{name}/", label, names))
    return folders


def _folder_labels(names: Sequence[str]) -> Sequence[int | None]:
    return [None] if len(names) == 1 else whole_numbers(names) or range(len(names))


def listed(source: Source) -> Listing:
    """The images and labels that a benchmark's own lists name.

    Raises:
        UserError: files are missing or damaged, or there are more or fewer images than the benchmark has.
    """
    from unic_pipe.pipeline.benchmarks.locate import locate, split_of
    from unic_pipe.pipeline.benchmarks.read import listing

    assert source.folder is not None
    return listing(locate(*split_of(source.text), source.folder))


def count_images(folder: Path, layout: str) -> int:
    """Number of images now in a class folder or flat folder."""
    if layout == "flat-folder":
        return sum(is_image(e.name) for e in os.scandir(folder))
    return sum(1 for _ in image_names(folder))


def scan_folder(folder: ImageFolder, names: tuple[str, ...]) -> pa.Table:
    """Hash the named images of a folder; rows in that order, keyed by path inside the source without the extension.

    Raises:
        UserError: an image that cannot be read.
    """
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
        [folder.key + name.rpartition(".")[0] for name in names],
        [folder.shard(name) for name in names],
        [0] * len(names),
        sizes,
        hashes,
        [folder.label] * len(names),
    )


def _checked(names: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for name in names:
        if not name.isprintable():  # undecodable bytes are lone surrogates, which are not printable
            raise UserError(f"{folder}: the file name {name!r} is not printable UTF-8.", "Rename the file.")
    return names
