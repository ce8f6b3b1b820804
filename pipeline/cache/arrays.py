"""One unit's part of an array to shard bytes and back, through Zarr on a store in memory.

Zarr never touches the disk: what it writes is published by one atomic put of ours, and what it reads was verified
before it saw it. That also keeps its thread pool from holding files, and makes reading safe in any process.
"""

import warnings
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from unic_pipe.pipeline.cache.layout import array_metadata
from unic_pipe.pipeline.cache.spec import ArraySpec

# Said for every array that is opened. The specification of pcodec is public, and numcodecs reads it everywhere.
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")


def encode_part(spec: ArraySpec, part: NDArray[Any]) -> bytes:
    """The bytes of the shard that holds `part` (shape `spec.shard`), also when it is nothing but fill values.
    Raises ValueError: another shape or dtype: floats assigned to an int8 array would wrap silently."""
    if part.shape != spec.shard or part.dtype != np.dtype(spec.dtype):
        raise ValueError(f"{spec.name}: {part.dtype} {part.shape} is not {spec.dtype} {spec.shard}")
    store = _one_shard(spec)
    # Without this a part of fill values would write no shard, and look like a missing one.
    array = _open(store, "r+").with_config({"write_empty_chunks": True})
    array[...] = part
    return store._store_dict[spec.chunk_key(0)].to_bytes()


def decode_part(spec: ArraySpec, shard: bytes) -> NDArray[Any]:
    """The part, shape `spec.shard`, of verified shard bytes.
    Raises ValueError, RuntimeError: bytes that are not a shard of this array."""
    store = _one_shard(spec)
    store._store_dict[spec.chunk_key(0)] = cpu.Buffer.from_bytes(shard)
    return np.asarray(_open(store, "r")[...])


def _one_shard(spec: ArraySpec) -> MemoryStore:
    # Metadata as on disk, but of an array of one unit: a shard's bytes do not depend on its place.
    rows = spec.shard[spec.axis]
    metadata = array_metadata(spec, rows if spec.counts == "rows" else 1, rows if spec.counts == "rows" else 1)
    return MemoryStore({"zarr.json": cpu.Buffer.from_bytes(metadata)})


def _open(store: MemoryStore, mode: Any) -> Any:
    return zarr.open_array(store, mode=mode, zarr_format=3)
