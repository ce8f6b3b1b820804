"""Writing a segment: rows come in tables, and go to a Parquet file a row group at a time."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from unic_pipe.pipeline.samples.packed import regrouped
from unic_pipe.pipeline.samples.table import (
    GROUP_ROWS,
    ROW_SCHEMA,
    column_parts,
    digest_of_parts,
    hashes_of,
    labels_digest,
    labels_of,
    one_array,
    parquet_writer,
)
from unic_pipe.schemas.samples import INDEX_COLUMNS, Segment, ShardEntry

_ROW = pa.field("row", pa.int64(), nullable=False)


def make_segment(
    tables: Iterable[pa.Table], before: Sequence[Segment], block_rows: int, shards: tuple[ShardEntry, ...], file: Path
) -> Segment:
    """A segment of these rows that begins at the next block after those before it; its Parquet file is written to `file`."""
    end = before[-1].first_row + before[-1].rows if before else 0
    first = -(-end // block_rows) * block_rows
    rows = 0
    labels: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    schema = pa.schema([_ROW, *ROW_SCHEMA])
    with parquet_writer(file, pa.schema([schema.field(name) for name in INDEX_COLUMNS])) as writer:
        for table in regrouped(tables, GROUP_ROWS):
            numbers = pa.array(np.arange(first + rows, first + rows + table.num_rows, dtype=np.int64))
            rows += table.num_rows
            labels.append(labels_of(one_array(table["label"])))
            writer.write_table(table.add_column(0, _ROW, numbers).select(INDEX_COLUMNS), row_group_size=GROUP_ROWS)
    return Segment(
        file=f"segment-{len(before):03d}.parquet",
        first_row=first,
        rows=rows,
        rows_digest=digest_of_parts(
            rows, lambda: column_parts(file, "key"), lambda: map(hashes_of, column_parts(file, "xxh3"))
        ),
        labels_digest=labels_digest(np.concatenate(labels)),
        file_digest=file_digest(file),
        shards=shards,
    )


def file_digest(file: Path) -> str:
    """XXH3-128 of a file (32 hex digits), read in pieces."""
    state = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while piece := handle.read(1 << 20):
            state.update(piece)
    return state.hexdigest()
