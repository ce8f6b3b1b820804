"""The digests of a segment's blocks, kept beside it: planning compares them, and need not read millions of keys for that.

    segment-000.parquet.blocks   XXH3-128 of the rest | the segment's file digest (32 characters) | 32 bytes a block

What is missing, damaged or of another file is not used; the digests follow from the rows.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from unic_pipe.pipeline.samples.packed import regrouped
from unic_pipe.pipeline.samples.table import hashes_of, one_array, rows_digest
from unic_pipe.pipeline.storage import Store, get_or_none
from unic_pipe.schemas.samples import Segment

_HASH, _HEAD = 16, 16 + 32
_DIGEST = 32


def write_block_digests(store: Store, segment: Segment, content: Path | bytes, block_rows: int) -> None:
    """Keep the digests of a segment's blocks; `content` is its Parquet file, or where that lies."""
    source = content if isinstance(content, Path) else pa.BufferReader(content)
    with pq.ParquetFile(source) as parquet:
        groups = (parquet.read_row_group(n, columns=["key", "xxh3"]) for n in range(parquet.num_row_groups))
        blocks = (
            rows_digest(one_array(rows["key"]), hashes_of(one_array(rows["xxh3"])))
            for rows in regrouped(groups, block_rows)
        )
        body = segment.file_digest.encode() + bytes.fromhex("".join(blocks))
    store.put(_name(segment), xxhash.xxh3_128_digest(body) + body)


def kept_block_digests(store: Store, segment: Segment, block_rows: int) -> dict[int, str]:
    """The digests by number of the block in its segment; none where they are not kept."""
    raw = get_or_none(store, _name(segment)) or b""
    if not _sound(raw, segment, block_rows):
        return {}
    return {n: raw[at : at + _DIGEST].hex() for n, at in enumerate(range(_HEAD, len(raw), _DIGEST))}


def spoiled_block_digests(store: Store, segment: Segment, block_rows: int) -> str | None:
    """The name of the file that keeps a segment's digests, if it is there and is not what was written."""
    raw = get_or_none(store, _name(segment))
    return None if raw is None or _sound(raw, segment, block_rows) else _name(segment)


def _sound(raw: bytes, segment: Segment, block_rows: int) -> bool:
    whole = len(raw) == _HEAD + _DIGEST * -(-segment.rows // block_rows)
    own = raw[_HASH:_HEAD] == segment.file_digest.encode()
    return whole and own and raw[:_HASH] == xxhash.xxh3_128_digest(raw[_HASH:])


def _name(segment: Segment) -> str:
    return f"{segment.file}.blocks"
