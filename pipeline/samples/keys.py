"""Keys that are unique in a dataset, and the order of rows.

A key never changes once indexed: what later segments hold cannot rename earlier rows.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from unic_pipe.pipeline.samples.table import labels_of, one_array
from unic_pipe.schemas.errors import UserError

ORDER_SEED = 2408
"""Seed of the row order of class-sorted sources; part of the format."""


def unique_keys(table: pa.Table, layout: str, earlier: Sequence[pa.Array], prefixed: bool) -> tuple[pa.Table, bool]:
    """Make a new segment's keys unique among themselves and against `earlier` ones.

    Tars: if any key repeats, or the first segment's did (`prefixed`), every key becomes `shard/key`. Folders: keys
    that repeat get their file extension back. Returns the table and whether keys were prefixed.
    Raises UserError: keys repeat even so.
    """
    keys, shards = one_array(table["key"]), one_array(table["shard"])
    clash = _clashes(keys, earlier)
    if layout == "tars" and (prefixed or clash.any()):
        prefixed = True
        original = keys
        for form in (lambda shard: PurePosixPath(shard).stem, lambda shard: shard.removesuffix(".tar")):
            keys = _prefix(original, shards, form)
            clash = _clashes(keys, earlier)
            if not clash.any():
                break
    elif clash.any():
        rows = np.flatnonzero(clash)
        extended = keys.to_pylist()
        for row in rows.tolist():
            extended[row] += "." + shards[row].as_py().rpartition(".")[2]
        keys = pa.array(extended, pa.large_string())
        clash = _clashes(keys, earlier)
    if clash.any():
        row = int(np.flatnonzero(clash)[0])
        raise UserError(
            f"{shards[row].as_py()}: key {keys[row].as_py()!r} is already in the dataset.", "Rename the sample."
        )
    return table.set_column(0, table.schema.field("key"), keys), prefixed


def class_sorted(table: pa.Table) -> bool:
    """Whether rows come class by class: every class in one run, or labels that never decrease."""
    labels_N = labels_of(one_array(table["label"]))
    distinct = len(np.unique(labels_N))
    if distinct < 2 or distinct == len(labels_N):
        return False
    runs = 1 + int(np.count_nonzero(np.diff(labels_N)))
    return runs == distinct or bool(np.all(np.diff(labels_N) >= 0))


def random_order(table: pa.Table) -> pa.Table:
    """Rows sorted by a seeded hash of their keys: a random order that depends on nothing else."""
    keys = one_array(table["key"])
    hashes_N = np.fromiter(
        (xxhash.xxh3_64_intdigest(key.encode(), seed=ORDER_SEED) for key in keys.to_pylist()), np.uint64, len(keys)
    )
    return table.take(pa.array(np.argsort(hashes_N, kind="stable")))


def _clashes(keys: pa.Array, earlier: Sequence[pa.Array]) -> np.ndarray:
    """Bool (N,): keys that are not the only one of their kind."""
    codes = keys.dictionary_encode()
    counts = np.bincount(codes.indices.to_numpy(), minlength=len(codes.dictionary))
    clash = counts[codes.indices.to_numpy()] > 1
    for known in earlier:
        clash = clash | pc.is_in(keys, value_set=known).to_numpy(zero_copy_only=False)
    return np.asarray(clash, np.bool_)


def _prefix(keys: pa.Array, shards: pa.Array, form: Callable[[str], str]) -> pa.Array:
    codes = shards.dictionary_encode()
    stems = pa.array([form(shard) for shard in codes.dictionary.to_pylist()], pa.large_string())
    return pc.binary_join_element_wise(stems.take(codes.indices), keys, pa.scalar("/", pa.large_string()))
