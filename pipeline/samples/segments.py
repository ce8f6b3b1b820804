"""Writing an index: rows become a segment, segments and the manifest a folder, and the pointer moves last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from unic_pipe.pipeline.samples.dataset import Dataset, read_manifest
from unic_pipe.pipeline.samples.table import hashes_of, labels_digest, labels_of, one_array, rows_digest, to_parquet
from unic_pipe.pipeline.samples.undertaking import Work
from unic_pipe.pipeline.storage import LocalStore, fast_hash
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.schemas.base import short
from unic_pipe.schemas.samples import INDEX_COLUMNS, DatasetManifest, Segment, ShardEntry


def make_segment(
    table: pa.Table, before: Sequence[Segment], block_rows: int, shards: tuple[ShardEntry, ...]
) -> tuple[Segment, bytes]:
    """A segment that begins at the next block after those before it, and its Parquet file."""
    end = before[-1].first_row + before[-1].rows if before else 0
    first = -(-end // block_rows) * block_rows
    numbers = pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))
    data = to_parquet(table.add_column(0, pa.field("row", pa.int64(), nullable=False), numbers).select(INDEX_COLUMNS))
    segment = Segment(
        file=f"segment-{len(before):03d}.parquet",
        first_row=first,
        rows=table.num_rows,
        rows_digest=rows_digest(one_array(table["key"]), hashes_of(one_array(table["xxh3"]))),
        labels_digest=labels_digest(labels_of(one_array(table["label"]))),
        file_digest=fast_hash(data),
        shards=shards,
    )
    return segment, data


def write_index(work: Work, manifest: DatasetManifest, files: Mapping[int, bytes]) -> Dataset:
    """Write segment files (by number), then the manifest, then the pointer.

    Raises:
        UserError: there is such an index with other block rows.
    """
    folder = f"{work.name}-{short(manifest.digest)}"
    store = work.place.child(folder)
    if store.size("manifest.json") is not None:
        work.expect_same_settings(read_manifest(store))
    segments = list(manifest.segments)
    for number, data in files.items():
        name = segments[number].file
        if store.size("manifest.json") is not None and store.size(name) is not None and store.get(name) != data:
            # The same rows with other labels or in another place: readers of the old manifest keep their file.
            name = f"segment-{number:03d}-{segments[number].file_digest[:8]}.parquet"
            segments[number] = segments[number].model_copy(update={"file": name})
        store.put(name, data)
    manifest = manifest.model_copy(update={"segments": tuple(segments)})
    store.put("manifest.json", manifest.to_bytes())
    point(work.place, work.name, folder)
    if isinstance(store, LocalStore):
        store.sweep()
    return Dataset(store, work.roots, manifest)
