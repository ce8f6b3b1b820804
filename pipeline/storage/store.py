"""Where artefacts live: a `Store` is a place of slash-separated keys, a local folder or a prefix of an object store.

`put` replaces atomically; `create` and `replace` are conditional, so that several writers need no lock between them.
What returned is durable. A store pickles as its location, and every process opens its own connections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import xxhash

from unic_pipe.pipeline.storage.regular import require_regular

Version = Hashable
"""Tells one content of a key from the next: an ETag, a generation, or (mtime_ns, size, inode)."""


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fast_hash(data: bytes) -> str:
    """XXH3-128 of bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces. Raises OSError, and UserError for what is no file."""
    with require_regular(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Store(Protocol):
    """What the cache and the documents need of a place to live in. Equal locations are equal stores."""

    def __hash__(self) -> int: ...

    @property
    def location(self) -> str:
        """The folder's path, or `s3://bucket/prefix`: what `open_store` takes."""

    @property
    def name(self) -> str:
        """The last part of the location."""

    @property
    def remote(self) -> bool:
        """Whether it is an object store: no free disk to ask for, no links, no locks, no temporary files."""

    def child(self, name: str) -> Store:
        """The store below a folder of this one."""

    def describe(self, key: str) -> str:
        """A key's full address, for messages."""

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises FileNotFoundError."""

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on. Raises FileNotFoundError."""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those keys that are there, in the given order; many requests at a time where that helps."""

    def put(self, key: str, data: bytes) -> None:
        """Write or replace, atomically and durably."""

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there; False when somebody else was first with other bytes.

        With equal bytes there already the answer may be either: an object store cannot tell a success whose response
        was lost from an equal write of somebody else.
        """

    def replace(self, key: str, data: bytes | None, version: Version | None) -> bool:
        """Write (None: delete) only if the key still has this version (None: is not there); False when it has not.

        Equal bytes that somebody else wrote meanwhile may count as written, as with `create`.
        """

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove keys; many requests at a time where that helps."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder `prefix`, in sorted order."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """All keys below a folder `prefix`, in sorted order, with their bytes: one listing."""

    def listing(self, prefix: str = "", deep: bool = True) -> dict[str, tuple[int, Version] | None]:
        """Keys below a folder with (bytes, version), sorted, in few requests. Not `deep`: immediate children, with None
        for folders (their keys without a slash). Hidden ones are included."""

    def names(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder, files and folders alike, without hidden ones, sorted."""

    def folders(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder that are folders themselves (no links, no hidden ones), sorted."""

    def size(self, key: str) -> int | None:
        """Bytes under a key, or None if there is nothing."""

    def version(self, key: str) -> Version | None:
        """The version of what is under a key, or None if there is nothing."""


def get_or_none(store: Store, key: str) -> bytes | None:
    """The bytes under a key, or None if there is nothing."""
    try:
        return store.get(key)
    except (FileNotFoundError, NotADirectoryError):
        return None
