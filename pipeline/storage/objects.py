"""A `Store` in an object store: `s3://bucket/prefix` through s3fs, `gs://bucket/prefix` through gcsfs.

Requests are retried here and nowhere else: the libraries' own retries are switched off, because only this level knows
what a failure after a conditional write means. A request whose response was lost may have done its work, so when a
condition fails, what is there is read: if it is what was to be written, it is taken to be ours.

No locks, no links, no temporary objects; an object appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from unic_pipe.pipeline.storage.requests import ABSENT, Busy, ConditionFailed, Requests, explained
from unic_pipe.pipeline.storage.store import Version
from unic_pipe.schemas.errors import UserError

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""Requests at most for one operation."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 20.0
"""Waits are drawn between zero and a bound that doubles from the first to the longest: half a minute in all."""
REQUESTS = 16
"""At a time, where many keys are asked for."""

T = TypeVar("T")


@dataclass(unsafe_hash=True)
class ObjectStore:
    """See the module. `options`: JSON of a mapping of options for fsspec's file system."""

    location: str
    options: str = field(default="{}", repr=False)
    remote = True

    def __post_init__(self) -> None:
        self.location = self.location.rstrip("/")
        self._scheme, _, rest = self.location.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def name(self) -> str:
        """The last part of the location."""
        return self.location.rpartition("/")[2]

    def child(self, name: str) -> ObjectStore:
        """The store below a folder of this one."""
        return ObjectStore(f"{self.location}/{name}", self.options)

    def describe(self, key: str) -> str:
        """A key's address."""
        return f"{self.location}/{key}"

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises FileNotFoundError."""
        return self._do(lambda r: r.get(self._prefix + key, None, None), key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on. Raises FileNotFoundError."""
        return self._do(lambda r: r.get(self._prefix + key, offset, size), key) if size else b""

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those keys that are there, in the given order."""
        wanted = list(keys)
        found = self._at_once(self._get_or_none, wanted)
        return {key: raw for key, raw in zip(wanted, found, strict=True) if raw is not None}

    def put(self, key: str, data: bytes) -> None:
        """Write or replace."""
        self._do(lambda r: r.put(self._prefix + key, data, None), key)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there; equal bytes that are there already count as written."""
        return self._conditionally(key, data, ABSENT)

    def replace(self, key: str, data: bytes | None, version: Version | None) -> bool:
        """Write or delete only if the key still has this version; equal bytes that are there already count as written."""
        return self._conditionally(key, data, ABSENT if version is None else version)

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""
        self._do(lambda r: r.delete(self._prefix + key, None), key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove keys, several at a time."""
        self._at_once(self.delete, list(keys))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder, in sorted order."""
        yield from self.sizes(prefix)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """All keys below a folder, in sorted order, with their bytes."""
        return {key: entry[0] for key, entry in self.listing(prefix).items() if entry is not None}

    def listing(self, prefix: str = "", deep: bool = True) -> dict[str, tuple[int, Version] | None]:
        """Keys below a folder with (bytes, version), sorted; not `deep`: immediate children, with None for folders."""
        start = self._prefix + (f"{prefix.rstrip('/')}/" if prefix else "")
        found = self._do(lambda r: list(r.listing(start, deep)), prefix)
        # Consoles mark an empty folder by an object whose name ends in a slash.
        inside = ((key.removeprefix(self._prefix), entry) for key, entry in found if entry is None or key[-1:] != "/")
        return {key.rstrip("/"): entry for key, entry in sorted(inside, key=lambda pair: pair[0])}

    def names(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder, without hidden ones."""
        return self._children(self.listing(prefix, deep=False))

    def folders(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder that are folders themselves, without hidden ones."""
        return self._children(key for key, entry in self.listing(prefix, deep=False).items() if entry is None)

    def size(self, key: str) -> int | None:
        """Bytes under a key, or None if there is nothing."""
        found = self._do(lambda r: r.head(self._prefix + key), key)
        return None if found is None else found[0]

    def version(self, key: str) -> Version | None:
        """The ETag or generation of what is under a key, or None if there is nothing."""
        found = self._do(lambda r: r.head(self._prefix + key), key)
        return None if found is None else found[1]

    def honours_conditions(self) -> bool:
        """Whether a conditional write is refused where its condition does not hold: some look-alikes overwrite silently.

        Tried on the small object `.conditions`, which stays.
        """
        key = f"{self._prefix}.conditions"
        first = json.dumps({"writer": os.urandom(8).hex()}).encode()

        def refused(data: bytes, only: Version) -> bool:
            try:
                self._do(lambda r: r.put(key, data, only), ".conditions")
            except (ConditionFailed, FileNotFoundError):
                return True
            return False

        self._do(lambda r: r.put(key, first, None), ".conditions")
        found = self._do(lambda r: r.head(key), ".conditions")
        if found is None or not refused(b"-", ABSENT):
            return False
        self._do(lambda r: r.put(key, first[::-1], None), ".conditions")
        return refused(b"-", found[1])

    def _conditionally(self, key: str, data: bytes | None, only: Version) -> bool:
        full = self._prefix + key
        try:
            if data is None:
                self._do(lambda r: r.delete(full, None if only is ABSENT else only), key)
            else:
                self._do(lambda r: r.put(full, data, only), key)
        except (ConditionFailed, FileNotFoundError):
            return self._get_or_none(key) == data
        return True

    def _get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def _children(self, keys: Iterable[str]) -> list[str]:
        return sorted(name for key in keys if not (name := key.rpartition("/")[2]).startswith("."))

    def _at_once(self, action: Callable[[str], T], keys: list[str]) -> list[T]:
        if len(keys) < 2:
            return [action(key) for key in keys]
        with ThreadPoolExecutor(min(REQUESTS, len(keys))) as pool:
            return list(pool.map(action, keys))

    def _do(self, action: Callable[[Requests], T], key: str) -> T:
        """Send a request, again and again while it may be repeated."""
        from tenacity import (
            Retrying,
            before_sleep_log,
            retry_if_exception_type,
            stop_after_attempt,
            wait_random_exponential,
        )

        retrying = Retrying(
            retry=retry_if_exception_type(Busy),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            before_sleep=before_sleep_log(logger, logging.DEBUG),
            reraise=True,
        )
        try:
            return retrying(lambda: action(_requests(self._scheme, self._bucket, self.options)))
        except Busy as error:
            raise explained(error, self.describe(key), ATTEMPTS) from error


_opening = threading.Lock()


def _new_lock() -> None:
    """A child that was forked while another thread held the lock would wait for ever."""
    global _opening
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def _requests(scheme: str, bucket: str, options: str) -> Requests:
    """The connections of this process: those of a parent must not be used after a fork."""
    with _opening:
        return _opened(scheme, bucket, options, os.getpid())


@lru_cache(maxsize=16)
def _opened(scheme: str, bucket: str, options: str, pid: int) -> Requests:
    del pid
    name, library = {"s3": ("s3", "s3fs"), "gs": ("gs", "gcsfs")}[scheme]
    settings: dict[str, Any] = json.loads(options)
    try:
        if scheme == "s3":
            from unic_pipe.pipeline.storage.s3 import S3Requests

            return S3Requests(bucket, settings)
        from unic_pipe.pipeline.storage.gs import GsRequests

        return GsRequests(bucket, settings)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs {library}, which is not installed ({error.name}).", f'pip install ".[{name}]"'
        ) from None
