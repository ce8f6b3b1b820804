"""Where artefacts live: durable, atomic, conditional writes in a local folder or an object store."""

from unic_pipe.pipeline.storage.local import LocalStore, abandoned, sync_folder
from unic_pipe.pipeline.storage.open import is_remote, open_store
from unic_pipe.pipeline.storage.store import Store, Version, fast_hash, get_or_none, sha256, sha256_of_file

__all__ = [
    "LocalStore",
    "Store",
    "Version",
    "abandoned",
    "fast_hash",
    "get_or_none",
    "is_remote",
    "open_store",
    "sha256",
    "sha256_of_file",
    "sync_folder",
]
