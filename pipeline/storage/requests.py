"""What an object store must be able to do for `ObjectStore`: one bucket, one request a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from unic_pipe.pipeline.storage.store import Version

ABSENT = object()
"""The condition that there is nothing under a key."""


class Requests(Protocol):
    """One bucket, one request a call: what differs between kinds of object stores.

    Raises:
        FileNotFoundError: no such key (or `get` and `listing`: no such bucket, as `UserError`).
        Busy: the request may be repeated, and may have done its work.
        ConditionFailed: what is there is not what the condition says.
        UserError, OSError: anything else.
    """

    def get(self, key: str, offset: int | None, size: int | None) -> bytes:
        """Content, or a part of it."""

    def head(self, key: str) -> tuple[int, Version] | None:
        """Bytes and version, or None if there is nothing."""

    def put(self, key: str, data: bytes, only: Version | None) -> None:
        """Write; `only`: if the key has this version (`ABSENT`: if there is nothing)."""

    def delete(self, key: str, only: Version | None) -> None:
        """Remove; `only`: if the key has this version."""

    def listing(self, prefix: str, deep: bool) -> Iterator[tuple[str, tuple[int, Version] | None]]:
        """(key, (bytes, version)) of the objects that begin with `prefix`; not `deep`: up to the next slash, folders
        have None."""
