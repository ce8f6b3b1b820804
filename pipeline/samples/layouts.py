"""What a folder holds: tars, class folders or images; where it could be two of them, the source that says which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unic_pipe.pipeline.samples.files import class_folders, is_image, peek
from unic_pipe.pipeline.samples.left_out import shown
from unic_pipe.pipeline.samples.splits import SPLITS
from unic_pipe.schemas.errors import UserError

Layout = Literal["tars", "class-folders", "flat-folder", "listed"]
CLASSES_ONLY = "/*/"
"""How a source ends that means the class folders in a folder, whatever else is there."""


def only_layout(
    name: str, base: str, folder: Path, tars: Sequence[str], files: Sequence[str], known: Layout | None
) -> Layout | None:
    """The layout of a folder, from its tars and the names of its files; None if it holds nothing. `known` decides where
    several are possible.

    Raises:
        UserError: several are, and nothing decides: tars or images beside folders of images, folders of tars.
    """
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
