"""Finding tars in object stores: patterns matched against listings, each folder listed once."""

from __future__ import annotations

import fnmatch
import glob

from unic_pipe.pipeline.samples.places import ObjectFile, Stamp
from unic_pipe.pipeline.storage import Store


class Listings:
    """Folders of object stores as they are now, each listed when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[Store, str], dict[str, Stamp | None]] = {}

    def entries(self, store: Store, folder: str) -> dict[str, Stamp | None]:
        """What is directly in a folder, by name and sorted; None for folders. Empty when there is no such folder.

        Raises:
            UserError: no such bucket, no credentials, not allowed.
        """
        key = (store, folder)
        if key not in self._known:
            found: dict[str, Stamp | None] = {}
            for path, about in store.listing(folder, deep=False).items():
                name = path.rstrip("/").rpartition("/")[2]
                found[name] = None if about is None else Stamp(about[0], 0, str(about[1]))
            self._known[key] = dict(sorted(found.items()))
        return self._known[key]

    def matches(self, store: Store, pattern: str) -> dict[str, ObjectFile | None]:
        """Objects whose path matches a pattern of literal parts and `*`, `?`, `[]`; None for folders."""
        if pattern == ".":
            return {".": None}
        # A folder is found by what is in it: who may list a prefix may not always list what is around it.
        if not glob.has_magic(pattern) and not pattern.lower().endswith(".tar") and self.entries(store, pattern):
            return {pattern: None}
        *parents, last = pattern.split("/")
        folders = [""]
        for part in parents:
            folders = [_join(folder, name) for folder in folders for name in self._folders(store, folder, part)]
        found: dict[str, ObjectFile | None] = {}
        for folder in folders:
            for name, stamp in self.entries(store, folder).items():
                if _fits(name, last):
                    path = _join(folder, name)
                    found[path] = None if stamp is None else ObjectFile(store, path, stamp)
        return found

    def _folders(self, store: Store, folder: str, part: str) -> list[str]:
        if not glob.has_magic(part):
            return [part]
        return [name for name, stamp in self.entries(store, folder).items() if stamp is None and _fits(name, part)]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _fits(name: str, part: str) -> bool:
    """As in a shell: a pattern finds no hidden names."""
    if name == part:
        return True
    return glob.has_magic(part) and fnmatch.fnmatchcase(name, part) and name.startswith(".") == part.startswith(".")
