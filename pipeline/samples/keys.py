"""Keys that are unique in a dataset, and the order of rows; both without holding the rows, of which there are many.

A key never changes once indexed: what later segments hold cannot rename earlier rows.

Legend: N rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.packed import Packed, regrouped
from unic_pipe.pipeline.samples.table import GROUP_ROWS, one_array
from unic_pipe.schemas.errors import UserError

ORDER_SEED = 2408
"""Seed of the row order of class-sorted sources; part of the format."""

Names = Callable[[pa.Table], pa.Array]
"""The keys of scanned rows."""
_FORMS = (lambda shard: PurePosixPath(shard).stem, lambda shard: shard.removesuffix(".tar"))


def unique_keys(
    scanned: Sequence[Packed], layout: str, earlier: Sequence[pa.Array], prefixed: bool
) -> tuple[Names, bool]:
    """What makes a new segment's keys unique among themselves and against `earlier` ones.

    Tars: if any key repeats, or the first segment's did (`prefixed`), every key becomes `shard/key`. Folders: keys
    that repeat get their file extension back. Returns how rows are named and whether keys were prefixed.
    Raises UserError: keys repeat even so.
    """
    names: Names = _as_scanned
    clash = next(_repeating(scanned, names, earlier), None)
    if layout == "tars" and (prefixed or clash is not None):
        prefixed = True
        for form in _FORMS:
            names = partial(_prefixed, form=form)
            clash = next(_repeating(scanned, names, earlier), None)
            if clash is None:
                break
    elif clash is not None:
        repeated = frozenset(key for _, key in _repeating(scanned, names, earlier))
        names = partial(_extended, repeated=repeated)
        clash = next(_repeating(scanned, names, earlier), None)
    if clash is not None:
        shard, key = clash
        raise UserError(f"{shard}: key {key!r} is already in the dataset.", "Rename the sample.")
    return names, prefixed


def named(scanned: Iterable[Packed], names: Names) -> Iterator[pa.Table]:
    """The rows of pieces with their keys."""
    for piece in scanned:
        table = piece.table()
        yield table.set_column(0, table.schema.field("key"), names(table))


def class_sorted(labels_N: NDArray[np.int32]) -> bool:
    """Whether rows come class by class: every class in one run, or labels that never decrease."""
    distinct = len(np.unique(labels_N))
    if distinct < 2 or distinct == len(labels_N):
        return False
    runs = 1 + int(np.count_nonzero(np.diff(labels_N)))
    return runs == distinct or bool(np.all(np.diff(labels_N) >= 0))


def random_order(tables: Callable[[], Iterable[pa.Table]], rows: int) -> Iterator[pa.Table]:
    """Rows sorted by a seeded hash of their keys: a random order that depends on nothing else.

    In tables of `GROUP_ROWS`. The rows, which are asked for twice, are dealt out to these first, and packed.
    """
    order_N = np.argsort(_hashes((one_array(t["key"]) for t in tables()), rows, ORDER_SEED), kind="stable")
    place_N = np.empty(rows, np.int64)
    place_N[order_N] = np.arange(rows)
    del order_N
    parts: list[list[tuple[Packed, NDArray[np.int64]]]] = [[] for _ in range(-(-rows // GROUP_ROWS))]
    start = 0
    for table in regrouped(tables(), GROUP_ROWS):
        places = place_N[start : start + table.num_rows]
        start += table.num_rows
        order = np.argsort(places)
        table, places = table.take(pa.array(order)), places[order]
        ends = np.searchsorted(places, GROUP_ROWS * np.arange(len(parts) + 1))
        for group, (first, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            if end > first:
                parts[group].append((Packed(table.slice(first, end - first)), places[first:end]))
    for mine in parts:
        whole = pa.concat_tables([packed.table() for packed, _ in mine])
        yield whole.take(pa.array(np.argsort(np.concatenate([places for _, places in mine]))))
        mine.clear()


def _repeating(scanned: Sequence[Packed], names: Names, earlier: Sequence[pa.Array]) -> Iterator[tuple[str, str]]:
    """(shard, key) of every row whose key was there before, in `earlier` or in a row before it.

    Hashes tell which keys may be; only those are remembered.
    """

    def keys() -> Iterator[pa.Array]:
        yield from earlier
        yield from (one_array(table["key"]) for table in named(scanned, names))

    rows = sum(map(len, earlier)) + sum(piece.num_rows for piece in scanned)
    sorted_N = _hashes(keys(), rows)
    sorted_N.sort()
    twice = sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]
    del sorted_N
    if not len(twice):
        return
    seen: set[str] = set()
    for known in earlier:
        seen.update(known[row].as_py() for row in _among(known, twice))
    for table in named(scanned, names):
        for row in _among(one_array(table["key"]), twice):
            key = table["key"][row].as_py()
            if key in seen:
                yield table["shard"][row].as_py(), key
            seen.add(key)


def _among(keys: pa.Array, sorted_hashes: NDArray[np.uint64]) -> list[int]:
    """Which keys have one of these hashes."""
    hashes_N = _hashes([keys], len(keys))
    place_N = np.minimum(np.searchsorted(sorted_hashes, hashes_N), len(sorted_hashes) - 1)
    found: list[int] = np.flatnonzero(sorted_hashes[place_N] == hashes_N).tolist()
    return found


def _hashes(keys: Iterable[pa.Array], rows: int, seed: int = 0) -> NDArray[np.uint64]:
    """XXH3-64 of keys, uint64 (N,)."""
    all_keys = (key for part in keys for key in part.to_pylist())
    return np.fromiter((xxhash.xxh3_64_intdigest(key.encode(), seed=seed) for key in all_keys), np.uint64, rows)


def _as_scanned(table: pa.Table) -> pa.Array:
    return one_array(table["key"])


def _prefixed(table: pa.Table, form: Callable[[str], str]) -> pa.Array:
    import pyarrow.compute as pc  # a tenth of a second, which only indexing has to wait

    codes = one_array(table["shard"]).dictionary_encode()
    stems = pa.array([form(shard) for shard in codes.dictionary.to_pylist()], pa.large_string())
    return pc.binary_join_element_wise(
        stems.take(codes.indices), one_array(table["key"]), pa.scalar("/", pa.large_string())
    )


def _extended(table: pa.Table, repeated: frozenset[str]) -> pa.Array:
    pairs = zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)
    keys = [f"{key}.{shard.rpartition('.')[2]}" if key in repeated else key for shard, key in pairs]
    return pa.array(keys, pa.large_string())
