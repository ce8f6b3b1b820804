"""Where shards are: below folders of this machine, or below `s3://bucket/prefix` and other object stores.

No request is made here, and nothing of the libraries for it is imported, before an object is looked at.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.samples.ranges import LocalRanges, Ranged, WindowRanges
from unic_pipe.pipeline.storage import LocalStore, Store, is_remote, open_store
from unic_pipe.schemas.errors import UserError

Root = Path | Store
"""What the path of a shard is relative to: a folder, or an object store."""


@dataclass(frozen=True)
class Stamp:
    """What is known of a shard without reading it."""

    size: int
    mtime_ns: int = 0
    """0 for objects."""
    etag: str | None = None
    """Another one for other content; None for files."""


@dataclass(frozen=True)
class ObjectFile:
    """An object as it was listed."""

    store: Store
    key: str
    listed: Stamp

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]

    def __str__(self) -> str:
        return self.store.describe(self.key)


Shard = Path | ObjectFile
"""A tar that was found."""


def as_root(text: str | Path | Store, folder: Path | None = None, options: Mapping[str, Any] | None = None) -> Root:
    """A root as configured: a path (relative to `folder`), or a URL, opened with `options` (`open_store`)."""
    if isinstance(text, Path):
        return text if folder is None else folder / text
    if isinstance(text, str):
        if not is_remote(text):
            path = Path(text).expanduser()
            return path if folder is None else folder / path
        return open_store(text.rstrip("/"), options)
    return text.root if isinstance(text, LocalStore) else text


def where(root: Root) -> str:
    """A root as it is written in messages and in `samples.roots`."""
    return str(root) if isinstance(root, Path) else root.location


def stamp(shard: Shard) -> Stamp:
    """Size and mtime of a file now; of an object, what its listing said."""
    if isinstance(shard, ObjectFile):
        return shard.listed
    status = os.stat(shard)
    return Stamp(status.st_size, status.st_mtime_ns)


def stamp_now(shard: Shard) -> Stamp | None:
    """The same, with a request for an object; None when it is gone."""
    if isinstance(shard, Path):
        return stamp(shard)
    version, size = shard.store.version(shard.key), shard.store.size(shard.key)
    return None if version is None or size is None else Stamp(size, 0, str(version))


def open_shard(shard: Shard, name: str) -> Ranged:
    """Open a tar for one pass from front to back; errors call it `name`. Raises UserError: it cannot be opened."""
    if isinstance(shard, ObjectFile):
        store, key = shard.store, shard.key
        return WindowRanges(shard.listed.size, lambda offset, size: store.get_range(key, offset, size))
    try:
        return LocalRanges(shard)
    except OSError as error:
        raise UserError(f"{name}: cannot be opened ({error.strerror}: {shard}).", "Check the file.") from error
