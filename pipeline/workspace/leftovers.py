"""What killed processes leave in a working folder: temporary files, half-made pointers, folders half removed or half made.

None of it is read, and none of it is damage: `verify` names it as what it is, and `gc` removes it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from unic_pipe.pipeline.storage import LocalStore, Store, abandoned
from unic_pipe.pipeline.storage.pointers import pointed
from unic_pipe.schemas.errors import UnicPipeError

TRASH = ".trash-"
"""Begins the name of a folder that is being removed."""
REMOVING = ".removing"
"""The object that says the same where folders cannot be renamed: it comes first and goes last."""
MANIFEST = "manifest.json"

KILLED = "left by a killed process"
REMOVED = "its removal was cut off"
BEGUN = "its making was cut off before there was anything in it"


def leftovers(workdir: Path, places: Iterable[Store]) -> Iterator[tuple[Path, str]]:
    """Files, links and folders beside the artefacts of `places`, and why each is there."""
    yield from temporary_files(workdir / "runs")
    for place in places:
        top = place.root if isinstance(place, LocalStore) else None
        for entry in sorted(top.glob(".*")) if top is not None and top.is_dir() else []:
            owner = re.fullmatch(r"\..+?\.([^.@]+[^@]*@\d+-\d+)", entry.name)
            if entry.name.startswith(TRASH) and entry.is_dir() and not entry.is_symlink():
                yield entry, REMOVED
            elif owner is not None and entry.is_symlink() and abandoned(entry, owner[1]):
                yield entry, KILLED


def temporary_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Temporary files in a folder's `.tmp` whose process is gone."""
    inside = folder / ".tmp"
    for entry in sorted(inside.iterdir()) if inside.is_dir() else []:
        known = re.fullmatch(r"[^@]+@\d+-\d+", entry.name) and entry.is_file() and not entry.is_symlink()
        if known and abandoned(entry, entry.name):
            yield entry, KILLED


def cut_off(kind: str, place: Store, name: str) -> str | None:
    """Why `samples/NAME`, or a folder of `features`, `students` or `evaluations`, is no artefact (any more, or yet), or None.

    A manifest is written before anything is kept that cannot be had again at once, a pointer after it, and the manifest
    is the first to be removed.
    """
    folder = place.child(name)
    if folder.size(MANIFEST) is not None or kind == "evaluations":
        return None
    held = {*folder.names()}
    if folder.size(REMOVING) is not None:
        return REMOVED
    own = {"samples": set[str](), "students": {"checkpoints", "export"}}.get(kind)
    if held and (own is None or own & held or _is_named(place, name)):
        return None
    return BEGUN


def _is_named(place: Store, folder: str) -> bool:
    """Whether a pointer leads to a folder."""
    try:
        found = pointed(place, folder[:-9])
    except UnicPipeError:
        return False
    return found is not None and found.name == folder
