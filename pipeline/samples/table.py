"""The index as Arrow tables: schema, identity digests, and Parquet files with reproducible bytes.

Legend: N rows.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROW_SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("shard", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("xxh3", pa.binary(16), nullable=False),
        pa.field("label", pa.int32()),
    ]
)
"""What scanning gives; `INDEX_COLUMNS` of schemas.samples without the row number."""
GROUP_ROWS = 1 << 17
"""Rows of a row group."""


def make_rows(
    keys: Sequence[str],
    shards: Sequence[str],
    offsets: Sequence[int],
    sizes: Sequence[int],
    hashes: Sequence[bytes],
    labels: Sequence[int | None],
) -> pa.Table:
    """A table of scanned samples (N rows), in `ROW_SCHEMA`."""
    columns = zip((keys, shards, offsets, sizes, hashes, labels), ROW_SCHEMA.types, strict=True)
    return pa.Table.from_arrays([pa.array(values, kind) for values, kind in columns], schema=ROW_SCHEMA)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def hashes_of(array: pa.Array) -> npt.NDArray[np.uint8]:
    """Content hashes as uint8 (N, 16)."""
    raw = np.frombuffer(array.buffers()[1], np.uint8) if len(array) else np.empty(0, np.uint8)
    return raw[16 * array.offset : 16 * (array.offset + len(array))].reshape(-1, 16)


def labels_of(array: pa.Array) -> npt.NDArray[np.int32]:
    """Labels as int32 (N,), -1 where there is none."""
    return np.asarray(array.fill_null(-1).to_numpy(zero_copy_only=False), np.int32)


def rows_digest(keys: pa.Array, hashes_N16: npt.NDArray[np.uint8]) -> str:
    """Identity of a run of rows: SHA-256 (64 hex digits) over their keys and content hashes, in order.

    The bytes: `unic-pipe rows 1\\0`, N as uint64, the N key lengths in bytes as uint32 (both little-endian), the keys
    in UTF-8 one after the other, the N hashes of 16 bytes.
    """
    return digest_of_parts(len(keys), lambda: [keys], lambda: [hashes_N16])


def digest_of_parts(
    rows: int, keys: Callable[[], Iterable[pa.Array]], hashes: Callable[[], Iterable[npt.NDArray[np.uint8]]]
) -> str:
    """`rows_digest` of rows that come in parts; their keys are asked for twice."""
    digest = hashlib.sha256(b"unic-pipe rows 1\0" + rows.to_bytes(8, "little"))
    for part in keys():
        digest.update(np.diff(_offsets(part)).astype("<u4").tobytes())
    for part in keys():
        offsets = _offsets(part)
        digest.update(memoryview(part.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])])
    for hashes_N16 in hashes():
        digest.update(hashes_N16.tobytes())
    return digest.hexdigest()


def _offsets(keys: pa.Array) -> npt.NDArray[np.int64]:
    """Where each key begins, and where the last ends, in the array's bytes: int64 (N + 1,)."""
    if not len(keys):
        return np.zeros(1, np.int64)
    return np.frombuffer(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]


def labels_digest(labels_N: npt.NDArray[np.int32]) -> str:
    """SHA-256 over labels as little-endian int32, in order."""
    return hashlib.sha256(labels_N.astype("<i4").tobytes()).hexdigest()


def to_parquet(table: pa.Table) -> bytes:
    """A Parquet file; equal tables give equal bytes (with one version of pyarrow)."""
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=GROUP_ROWS)
    return bytes(sink.getvalue())


def parquet_writer(target: Path | pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes what `to_parquet` writes, if it is given tables of `GROUP_ROWS` rows, one after the other."""
    return pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=["shard"], write_statistics=False)


def from_parquet(data: bytes) -> pa.Table:
    """Read back what `to_parquet` wrote."""
    return pq.read_table(pa.BufferReader(data))


def column_parts(source: Path | pa.NativeFile, column: str) -> Iterator[pa.Array]:
    """A column of such a file, row group by row group."""
    with pq.ParquetFile(source) as parquet:
        for group in range(parquet.num_row_groups):
            yield one_array(parquet.read_row_group(group, columns=[column])[column])
