"""Patterns of sources: braces written out, `*` matched on disk and against listings of object stores.

What is there under its very name is taken as it is."""

import fnmatch
import glob
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from unic_pipe.pipeline.samples.places import ObjectFile, Root, Shard, Stamp
from unic_pipe.pipeline.storage import Store
from unic_pipe.schemas.errors import UserError


class Listings:
    """Folders of object stores as they are now, each listed when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[Store, str], dict[str, Stamp | None]] = {}

    def entries(self, store: Store, folder: str) -> dict[str, Stamp | None]:
        """What is directly in a folder, by name and sorted; None for folders. Empty when there is no such folder.
        Raises UserError: no such bucket, no credentials, not allowed."""
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


Found = Shard | None
"""A file, an object, or a folder: a `Path` on disk, None in an object store."""
MOST_PATHS = 1_000_000
"""That braces may stand for: ImageNet-21k in tars of a hundred images has a tenth of it."""


def expand_braces(text: str) -> list[str]:
    """`a{00..02}` and `a{x,y}` written out, in order; numbers keep their leading zeros.
    Raises UserError: more than `MOST_PATHS`."""
    pieces: list[Sequence[str]] = []
    total = 1
    for literal, brace in re.findall(r"([^{]*)(?:\{([^{}]*)\})?", text):
        pieces.append([literal])
        span = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", brace)
        if span:
            width = len(span[1]) if span[1].startswith("0") else 0
            numbers = range(int(span[1]), int(span[2]) + 1)
            total *= int(span[2]) - int(span[1]) + 1
            pieces.append([f"{n:0{width}d}" for n in numbers] if total <= MOST_PATHS else [])
        elif brace:
            pieces.append(brace.split(","))
            total *= len(pieces[-1])
    if total > MOST_PATHS:
        raise UserError(f"source {text!r} stands for {total:,} paths.", f"At most {MOST_PATHS:,}: shorten the range.")
    return ["".join(parts) for parts in itertools.product(*pieces)]


def matches(text: str, roots: Sequence[Root], listings: Listings) -> tuple[dict[str, Found], list[str]]:
    """What a source matches, by path relative to a root, and the patterns that its braces stand for and match nothing.

    Paths are in the order of the braces, then sorted; the first root that has a path wins.
    """
    there = _existing_part(text, roots, listings)
    found: dict[str, Found] = {}
    missing = []
    for rest in expand_braces(text[len(there) :]):
        here = _matches(there, rest, roots, listings)
        if not here:
            missing.append(there + rest)
        found |= {path: file for path, file in here.items() if path not in found}
    return found, missing


def _existing_part(text: str, roots: Sequence[Root], listings: Listings) -> str:
    """The longest beginning of `text`, in whole parts, that exists under its very name; nothing where braces and `*` are
    not in question."""
    if not re.search(r"[*?{\[]", text):
        return ""
    for root in roots:
        if not isinstance(root, Path) and "{" in text and listings.matches(root, text):
            return text
    parts = text.split("/")
    beginnings = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    folders = [root for root in roots if isinstance(root, Path)]
    return next((b for b in beginnings if any((root / b).exists() for root in folders)), "")


def _matches(there: str, rest: str, roots: Iterable[Root], listings: Listings) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for root in roots:
        if not isinstance(root, Path):
            for path, file in listings.matches(root, there + rest).items():
                found.setdefault(path, file)
            continue
        if (root / (there + rest)).exists():
            names = [there + rest]
        else:
            names = glob.glob(glob.escape(there) + rest, root_dir=root) if glob.has_magic(rest) else []
        for relative in names:
            found.setdefault(Path(relative).as_posix(), root / relative)
    return dict(sorted(found.items()))
