"""Opening the store that a location names: a folder, `s3://bucket/prefix` or `gs://bucket/prefix`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.storage.local import LocalStore
from unic_pipe.pipeline.storage.store import Store
from unic_pipe.schemas.errors import UserError

SCHEMES = ("s3", "gs")


def is_remote(location: str) -> bool:
    """Whether a text names a place in an object store."""
    return location.partition("://")[0] in SCHEMES and "://" in location


def open_store(location: str | Path, options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path, or at `s3://bucket/prefix` or `gs://bucket/prefix`. Nothing is asked of it yet.

    `options` are those of fsspec's file system for object stores (endpoint_url, anon, profile …).
    Raises UserError: no such kind of store, or no bucket.
    """
    text = str(location)
    if isinstance(location, Path) or "://" not in text:
        return LocalStore(Path(text))
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise UserError(f"{text}: there is no store of kind {scheme}://.", "Use a folder, s3://… or gs://….")
    if not rest.partition("/")[0]:
        raise UserError(f"{text} names no bucket.", f"Write it as {scheme}://BUCKET/PREFIX.")
    from unic_pipe.pipeline.storage.objects import ObjectStore

    return ObjectStore(text, json.dumps(dict(options or {}), sort_keys=True))
