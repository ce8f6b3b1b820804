"""Which files below a folder are images, by their names."""

from __future__ import annotations

import os
from pathlib import Path

from unic_pipe.pipeline.samples.shards import IMAGE_EXTENSIONS


def is_image(name: str) -> bool:
    """Whether a file name is that of an image (hidden files are not)."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith(".") and "." in name


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sorted names of the folders in a folder; hidden ones are not seen."""
    return tuple(sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and os.path.isdir(e)))


def image_names(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, unsorted; hidden ones are not seen."""
    found, pending = [], [""]
    while pending:
        below = pending.pop()
        for entry in os.scandir(folder / below):
            if entry.name.startswith("."):
                continue
            if is_image(entry.name):
                found.append(below + entry.name)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(f"{below}{entry.name}/")
    return found
