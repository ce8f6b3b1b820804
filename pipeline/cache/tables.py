"""Parquet files that carry a hash of themselves, so that damage is found before a byte is believed.

A Parquet reader finds columns by their offsets in the footer, so bytes between the last column and the footer are
nobody's: the seal stands there. One file, replaced by one rename, and any Parquet reader opens it.

    PAR1 | columns | payload column (large, last) | seal | footer | footer length | PAR1

The seal holds two hashes: of the payload column, and of everything else (the core). Reading the small columns needs
the core alone, however large the payload is; the payload is hashed by whoever reads it.
"""

import io
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from unic_pipe.pipeline.storage import Store
from unic_pipe.schemas.errors import DamagedError

_MAGIC = b"UNICSEAL"
_SEAL = struct.Struct("<8sQQ16s")
"""Magic, start and length of the payload column in the file, XXH3-128 of it; XXH3-128 of the core follows."""
_SEAL_BYTES = _SEAL.size + 16
TAIL_BYTES = 1 << 16
"""What is read first of a large file: the seal and the footer are in it, as a rule."""
_MARK = {"unic-pipe": "sealed table"}
"""In the footer of a sealed table: says that there is a seal, where damage hid the seal itself."""


class DamagedTable(Exception):
    """The file is not what was written: shortened, edited, or with a flipped bit."""


def sealed_table(table: pa.Table) -> bytes:
    """Deterministic, compressed Parquet bytes of a table of scores or metrics: see `read_table`."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(_MARK)
    return _sealed(sink.getvalue())


def read_table(raw: bytes, source: str, hint: str, sealed: bool = False) -> pa.Table:
    """The table in a file's bytes: a sealed one verified, one of a version that had no seals as it is.

    `source` (a path) and `hint` (what to type) are for errors; `sealed`: it has a seal, for what lies beside it has.
    Raises DamagedError: not what was written, or no table.
    """
    try:
        return pq.read_table(io.BytesIO(raw)) if unsealed_table(raw) and not sealed else read_sealed(raw)
    except (DamagedTable, pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedError(f"{source}: the table was edited or damaged ({reason}).", hint) from None


def unsealed_table(raw: bytes) -> bool:
    """Whether a table's bytes (the last `TAIL_BYTES` are enough) carry neither a seal nor the mark of one."""
    return not any(sign in raw[-TAIL_BYTES:] for sign in (_MAGIC, _MARK["unic-pipe"].encode()))


def sealed_parquet(table: pa.Table, payload: str | None = None) -> bytes:
    """Deterministic Parquet bytes of a table; `payload` names its last column if that is large and read apart.

    Uncompressed and in one row group: documents and statistics must be findable even in a damaged file.
    """
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, len(table)),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    return _sealed(sink.getvalue(), payload if len(table) else None)


def _sealed(raw: bytes, payload: str | None = None) -> bytes:
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    start = footer
    if payload is not None:
        group = pq.read_metadata(io.BytesIO(raw)).row_group(0)
        column = group.column(group.num_columns - 1)
        assert column.path_in_schema == payload, "the payload is the last column"
        start = column.data_page_offset
    head = _SEAL.pack(_MAGIC, start, footer - start, xxhash.xxh3_128_digest(raw[start:footer]))
    return raw[:footer] + head + _core_hash(raw[:start], head, raw[footer:]) + raw[footer:]


def read_core(store: Store, key: str, columns: list[str], size: int | None = None) -> pa.Table:
    """Small columns of a sealed file, verified, without reading the payload. `size`: its bytes, where they are known.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedTable: the core is not what was written.
    """
    size = store.size(key) if size is None else size
    if size is None:
        raise FileNotFoundError(store.describe(key))
    end = store.get_range(key, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
    wanted = int.from_bytes(end[-8:-4], "little") + 8 + _SEAL_BYTES
    if wanted > size:
        raise DamagedTable(f"{store.describe(key)}: no footer")
    tail = end[-wanted:] if wanted <= len(end) else store.get_range(key, size - wanted, wanted)
    start, length = _check_seal(tail, size)
    head = end[:start] if len(end) == size else store.get_range(key, 0, start)
    if _core_hash(head, tail[: _SEAL.size], tail[_SEAL_BYTES:]) != tail[_SEAL.size : _SEAL_BYTES]:
        raise DamagedTable(f"{store.describe(key)}: the core's hash does not match")
    # The payload's place is left as zeros; pages of it that nobody touches take no memory.
    sparse = np.zeros(size, np.uint8)
    sparse[:start] = np.frombuffer(head, np.uint8)
    sparse[start + length :] = np.frombuffer(tail, np.uint8)
    return _parse(sparse, columns)


def read_sealed(raw: bytes) -> pa.Table:
    """All columns of a sealed file's bytes, verified. Raises DamagedTable: not what was written."""
    wanted = int.from_bytes(raw[-8:-4], "little") + 8 + _SEAL_BYTES
    tail = raw[-wanted:] if wanted <= len(raw) else b""
    start, length = _check_seal(tail, len(raw))
    payload_hash = _SEAL.unpack(tail[: _SEAL.size])[3]
    if (
        _core_hash(raw[:start], tail[: _SEAL.size], tail[_SEAL_BYTES:]) != tail[_SEAL.size : _SEAL_BYTES]
        or xxhash.xxh3_128_digest(raw[start : start + length]) != payload_hash
    ):
        raise DamagedTable("a hash does not match")
    return _parse(np.frombuffer(raw, np.uint8), None)


def _core_hash(before: bytes, seal: bytes, after: bytes) -> bytes:
    state = xxhash.xxh3_128(before)
    state.update(seal)
    state.update(after)
    return state.digest()


def _check_seal(tail: bytes, size: int) -> tuple[int, int]:
    """Start and length of the payload column, if a seal stands before the footer."""
    if len(tail) < _SEAL_BYTES + 8 or tail[:8] != _MAGIC:
        raise DamagedTable("no seal")
    _, start, length, _ = _SEAL.unpack(tail[: _SEAL.size])
    if start + length + len(tail) != size:
        raise DamagedTable("the seal does not fit the file")
    return start, length


def _parse(data: Any, columns: list[str] | None) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(data))).read(columns=columns, use_threads=False)
