"""Which names are images, what is below a folder, and what it can be read as: tars, class folders or images.

Where it could be two of them, the error names the sources that say which."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from unic_pipe.pipeline.samples.left_out import LeftOut, shown
from unic_pipe.pipeline.samples.splits import SPLITS
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import ImageNames

_FIRST_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm"})
IMAGE_EXTENSIONS = _FIRST_ENDINGS | {"gif", "jfif", "jpe"}
"""Lower-case endings of images."""
NAMES = ImageNames(version=2)
"""The rule of new indexes."""
_NO_DATA = frozenset(
    {"@eadir", "@recycle", "#recycle", "#snapshot", "@__thumb", "__macosx", "lost+found", "$recycle.bin"}
    | {"system volume information"}
)
"""Folders that storage devices and systems put between people's own, in small letters."""
_PEEK = 1000


def image_endings(rule: ImageNames = NAMES) -> frozenset[str]:
    """Endings of images under a rule."""
    if rule.image is not None:
        return frozenset({rule.image})
    return _FIRST_ENDINGS if rule.version == 1 else IMAGE_EXTENSIONS


def image_ending(name: str, rule: ImageNames = NAMES) -> str | None:
    """The ending, without its first dot, by which a file is an image; None if it is none (hidden files are not)."""
    last = rule.image or name.rpartition(".")[2].lower()
    found = last in image_endings(rule) and name.lower().endswith(f".{last}")
    return last if found and not name.startswith(".") else None


def is_image(name: str, rule: ImageNames = NAMES) -> bool:
    """Whether a file name is that of an image."""
    return image_ending(name, rule) is not None


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sorted names of the folders in a folder; hidden ones and those of storage devices are not seen."""
    return tuple(sorted(e.name for e in _entries(folder) if _is_data(e.name) and os.path.isdir(e)))


def image_names(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, sorted."""
    return list(list_images(folder)[0])


def list_images(folder: Path, rule: ImageNames = NAMES, deep: bool = True) -> tuple[tuple[str, ...], LeftOut]:
    """Paths of the images below a folder (directly in it, unless `deep`), relative to it and sorted; and what else is there.

    Linked folders are entered last and in the order of their paths, each folder once: links may form circles.
    Raises UserError: a folder that cannot be listed.
    """
    names: list[str] = []
    left = LeftOut()
    read = {_identity(above) for above in (folder.resolve(), *folder.resolve().parents)}
    pending, links = [""], list[str]()
    while pending or links:
        if pending:
            below = pending.pop()
        else:
            links.sort(reverse=True)
            below = links.pop()
        if below and _identity(folder / below) in read:
            left.add("link", below)
            continue
        read.add(_identity(folder / below))
        for entry in _entries(folder / below):
            path = below + entry.name
            if not os.path.isdir(entry):
                _sort_file(entry, path, rule, names, left)
            elif not deep or not _is_data(entry.name) or (rule.version == 1 and entry.is_symlink()):
                if not entry.name.startswith("."):
                    left.add("folder", path)
            else:
                (links if entry.is_symlink() else pending).append(f"{path}/")
    return tuple(sorted(names)), left


def beside_class_folders(folder: Path, rule: ImageNames) -> LeftOut:
    """The files that lie in a folder of class folders itself."""
    stray: list[str] = []
    left = LeftOut()
    for entry in _entries(folder):
        if not os.path.isdir(entry):
            _sort_file(entry, entry.name, rule, stray, left)
    for name in sorted(stray):
        left.add("file", name, f".{image_ending(name, rule)}")
    return left


def peek(folder: Path) -> str | None:
    """What a folder seems to hold, from its first thousand entries: `images`, `tars`, or None of them."""
    tars = False
    for _, entry in zip(range(_PEEK), _entries(folder), strict=False):
        if is_image(entry.name) and not os.path.isdir(entry):
            return "images"
        tars |= entry.name.lower().endswith(".tar") and not entry.name.startswith(".")
    return "tars" if tars else None


def _sort_file(entry: os.DirEntry[str], path: str, rule: ImageNames, names: list[str], left: LeftOut) -> None:
    name = entry.name
    if is_image(name, rule):
        # A link that leads nowhere is an image that is missing: reading it says so.
        missing = entry.is_symlink() and not os.path.exists(entry.path)
        if os.path.isfile(entry) or missing:
            names.append(path)
        else:
            left.add("special", path)
    elif not name.startswith("."):
        stem, dot, ending = name.rpartition(".")
        left.add("file", path, f".{ending.lower()}" if stem and dot else "no ending")
    elif is_image(name.lstrip("."), rule):
        left.add("hidden", path)


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _NO_DATA


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}).", "Check the folder.") from None


Layout = Literal["tars", "class-folders", "flat-folder", "listed"]
CLASSES_ONLY = "/*/"
"""How a source ends that means the class folders in a folder, whatever else is there."""


def only_layout(
    name: str, base: str, folder: Path, tars: Sequence[str], files: Sequence[str], known: Layout | None
) -> Layout | None:
    """The layout of a folder, from its tars and the names of its files; None if it holds nothing. `known` decides where
    several are possible.
    Raises UserError: several are, and nothing decides: tars or images beside folders of images, folders of tars."""
    images, classes = [file for file in files if is_image(file)], class_folders(folder)
    here: Layout | None = "tars" if tars else "flat-folder" if images else None
    possible = {"tars": tars, "flat-folder": images, "class-folders": classes}
    if known is not None and possible.get(known):
        return known
    if here is None and {c.lower() for c in classes} <= SPLITS:
        return "class-folders" if classes else None
    # A thousand class folders are not all looked into: the first that holds something tells.
    looked = ((below, peek(folder / below)) for below in classes)
    below, inside = next(((below, what) for below, what in looked if what), ("", None))
    if inside is None or (inside == "images" and here is None):
        return here or "class-folders"
    within = "" if base == "." else f"{base}/"
    ways = {
        "tars": f'`source: "{within}*.tar"` for {shown(Path(tars[0]).name)} and the like' if tars else "",
        "below": f'`source: "{within}*/*.tar"` for the tars in folders' if inside == "tars" else "",
        "classes": f'`source: "{base}{CLASSES_ONLY}"` for the folders' if inside == "images" else "",
        "images": f"move the folders away for {shown(images[0])} and the like" if images and not tars else "",
    }
    beside = f"{shown(Path(tars[0]).name if tars else images[0])} beside " if here else ""
    raise UserError(
        f"dataset {name}: {folder} holds {beside}folders of {inside} ({shown(below)}, ...), which could mean more than one thing."
        if here
        else f"dataset {name}: {folder} holds folders of tars ({shown(below)}, ...), and no class folders.",
        f"Set {', or '.join(filter(None, ways.values()))}.",
    )
