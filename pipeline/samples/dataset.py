"""An indexed dataset: its rows, blocks, keys and labels, and the bytes of its images.

Legend: N rows. A row is found by its number; numbers have gaps where a segment ended inside a block.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from unic_pipe.pipeline.samples.ahead import ReadAhead
from unic_pipe.pipeline.samples.block_digests import kept_block_digests, spoiled_block_digests
from unic_pipe.pipeline.samples.descriptors import ShardFiles
from unic_pipe.pipeline.samples.places import Root, as_root, where
from unic_pipe.pipeline.samples.table import column_parts, hashes_of, labels_of, one_array, rows_digest
from unic_pipe.pipeline.samples.undecodable import DELETED, UndecodableImage
from unic_pipe.pipeline.storage import LocalStore, Store, open_store
from unic_pipe.pipeline.storage.pointers import pointed
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.samples import DatasetManifest, Segment
from unic_pipe.schemas.status import State

FOLDER = "samples"
"""Folder of all indexes, in the working folder."""
TRIES = 3
_WAIT_S = 0.1


class SegmentTable:
    """One segment's columns, each loaded from Parquet when it is first used (all checked against the manifest)."""

    def __init__(self, store: Store, segment: Segment, layout: str) -> None:
        self.segment = segment
        self._store, self._layout = store, layout
        self._lock = threading.RLock()
        self._content: Path | bytes | None = None
        self._digests: dict[int, str] | None = None

    def check(self) -> None:
        """Compare the file with the manifest. Raises StageError."""
        with self._lock:
            self._content = self._checked()

    def _checked(self) -> Path | bytes:
        """What Parquet is read from: the file, or an object's bytes."""
        name, hash_ = self.segment.file, xxhash.xxh3_128()
        content: Path | bytes = b""
        try:
            if isinstance(self._store, LocalStore):
                content = self._store.path(name)
                with content.open("rb") as handle:
                    while piece := handle.read(1 << 20):
                        hash_.update(piece)
            else:
                content = self._store.get(name)
                hash_.update(content)
            problem = None if hash_.hexdigest() == self.segment.file_digest else "its content changed"
        except OSError as error:
            problem = error.strerror or "cannot be read"
        if problem:
            raise StageError(
                f"{self._store.describe(name)}: the sample index is damaged ({problem}).",
                f"Restore the file, or move {self._store.location} away and index again: equal data give an equal index.",
            )
        return content

    def _column(self, name: str) -> pa.Array:
        with self._lock:
            return one_array(pq.read_table(self._source(), columns=[name])[name])

    def parts(self, name: str) -> Iterator[pa.Array]:
        """A column, row group by row group; nothing is kept."""
        return column_parts(self._source(), name)

    def _source(self) -> Path | pa.BufferReader:
        with self._lock:
            if self._content is None:
                self._content = self._checked()
            return self._content if isinstance(self._content, Path) else pa.BufferReader(self._content)

    def block_digest(self, start: int, count: int, block_rows: int) -> str:
        """`rows_digest` of the block of so many rows from `start` on: as kept beside the file, or computed once."""
        number = start // block_rows
        with self._lock:
            if self._digests is None:
                self._source()
                self._digests = kept_block_digests(self._store, self.segment, block_rows)
            if number not in self._digests:
                rows = slice(start, start + count)
                self._digests[number] = rows_digest(self.keys.slice(start, count), self.hashes[rows])
            return self._digests[number]

    def block_digests(self, blocks: int, block_rows: int) -> list[str]:
        """`block_digest` of its first so many blocks."""

        def digest(block: int) -> str:
            start = block * block_rows
            return self.block_digest(start, min(block_rows, self.segment.rows - start), block_rows)

        found = [digest(0)] if blocks else []  # which reads those that are kept
        kept = self._digests or {}
        return found + [kept.get(block) or digest(block) for block in range(1, blocks)]

    def spoiled(self, block_rows: int) -> str | None:
        """The file of its blocks' digests, if that is not what was written."""
        return spoiled_block_digests(self._store, self.segment, block_rows)

    @cached_property
    def keys(self) -> pa.Array:
        """Keys, large_string (N,)."""
        return self._column("key")

    @cached_property
    def shards(self) -> pa.Array:
        """Shards, large_string (N,), dictionary-encoded where many rows share one."""
        array = self._column("shard")
        return array.dictionary_encode() if self._layout == "tars" else array

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Byte offset of each image in its shard, int64 (N,)."""
        return np.asarray(self._column("offset").to_numpy(), np.int64)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each image, int64 (N,)."""
        return np.asarray(self._column("size").to_numpy(), np.int64)

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint8]:
        """XXH3-128 of each image, uint8 (N, 16)."""
        return hashes_of(self._column("xxh3"))

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class numbers, int32 (N,), -1 where there is none."""
        return labels_of(self._column("label"))


class Dataset:
    """Read access to an indexed dataset. Safe in threads, after a fork, and when pickled (as places, without data)."""

    def __init__(self, store: Store, roots: Sequence[Root], manifest: DatasetManifest) -> None:
        self.store = store
        self.roots = tuple(roots)
        self.manifest = manifest
        self.segments = tuple(SegmentTable(store, s, manifest.layout) for s in manifest.segments)
        self._firsts = [s.first_row for s in manifest.segments]
        self._files = ShardFiles(self.roots)
        self._gone = frozenset(manifest.gone)
        self._digests: list[str] = []

    def __reduce__(self) -> tuple[object, tuple[Store, tuple[Root, ...]]]:
        return open_dataset, (self.store, self.roots)

    @property
    def digest(self) -> str:
        """The dataset's lineage: the digest of its first segment."""
        return self.manifest.digest

    @property
    def block_rows(self) -> int:
        """Rows per block."""
        return self.manifest.block_rows

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.manifest.blocks

    def block_range(self, block: int) -> tuple[int, int]:
        """First row and number of real rows of a block; the last block of a segment may be shorter."""
        first = block * self.block_rows
        segment, offset = self._locate(first)
        return first, min(self.block_rows, segment.segment.rows - offset)

    def block_keys(self, block: int) -> tuple[str, ...]:
        """Keys of a block's rows, in order."""
        segment, start, count = self._block(block)
        return tuple(segment.keys.slice(start, count).to_pylist())

    def block_digest(self, block: int) -> str:
        """SHA-256 (64 hex digits) over keys and content hashes of a block's rows (`table.rows_digest`)."""
        segment, start, count = self._block(block)
        return segment.block_digest(start, count, self.block_rows)

    def block_digests(self, blocks: int) -> list[str]:
        """`block_digest` of blocks 0 to `blocks` - 1; remembered, because every teacher and view is compared with them."""
        if len(self._digests) < blocks:
            found = list[str]()
            for segment in self.segments:
                count = min(-(-segment.segment.rows // self.block_rows), blocks - len(found))
                found += segment.block_digests(count, self.block_rows)
            self._digests = found
        return self._digests[:blocks]

    def rows(self) -> npt.NDArray[np.int64]:
        """All row numbers, int64 (N,), increasing."""
        return np.concatenate([np.arange(s.first_row, s.first_row + s.rows) for s in self.manifest.segments])

    def labels(self) -> npt.NDArray[np.int64]:
        """Class numbers in the order of `rows()`, int64 (N,), -1 where there is none."""
        return np.concatenate([segment.labels for segment in self.segments]).astype(np.int64)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of every image, in the order of `rows()`, int64 (N,)."""
        return np.concatenate([segment.sizes for segment in self.segments])

    def labels_by_row(self) -> npt.NDArray[np.int64]:
        """Class numbers addressed by row number, int64; -1 where there is no label, or no row."""
        by_row = np.full(self.manifest.end_row, -1, dtype=np.int64)
        by_row[self.rows()] = self.labels()
        return by_row

    @cached_property
    def class_numbers(self) -> npt.NDArray[np.int64]:
        """Class numbers of the rows whose image was not deleted, each once, in order; -1 among them where there is no label."""
        labels = self.labels()
        return np.unique(labels[np.concatenate([self.kept(b) for b in range(self.blocks)])] if self._gone else labels)

    def key(self, row: int) -> str:
        """Key of a row."""
        segment, offset = self._locate(row)
        return str(segment.keys[offset].as_py())

    def shard(self, row: int) -> str:
        """Path of the file that holds a row's image, relative to a root."""
        segment, offset = self._locate(row)
        return str(segment.shards[offset].as_py())

    def read(self, row: int) -> bytes:
        """The bytes of a row's image: those that were indexed, or an error; never others.

        Raises:
            UndecodableImage: the image was deleted, and the index says so.
            UserError: the shard is under none of the roots, or the object store refuses.
            StageError: three tries gave an I/O error or other bytes.
        """
        (shard, offset, size), problem = self._place(row), ""
        if shard in self._gone:
            raise UndecodableImage(DELETED)
        for attempt in range(TRIES):
            if attempt:
                time.sleep(_WAIT_S * attempt)
            try:
                data = self._files.read(shard, offset, size)
            except FileNotFoundError:
                problem = "missing"
            except OSError as error:
                problem = f"cannot be read ({error.strerror or error})"
            else:
                if self._indexed(row, data):
                    return data
                problem = "is not the data that was indexed"
            self._files.forget(shard)
        name = self.manifest.name
        if problem == "missing":
            raise UserError(
                f"dataset {name}: {shard} is not there (looked in {', '.join(map(where, self.roots))}).",
                "Has the data moved? Set `samples.roots` to the folder that holds it. Was the image deleted? Run: "
                "unic-pipe index, which voids its row.",
            )
        raise StageError(
            f"dataset {name}: {shard}, byte {offset:,} ({size:,} bytes, key {self.key(row)!r}) {problem}.",
            "Restore the file from its source; or index the changed data as another dataset (a new name).",
        )

    def kept(self, block: int) -> npt.NDArray[np.bool_]:
        """Which of a block's rows still have their image, bool (rows,): the others are void, whatever was made of them."""
        segment, start, count = self._block(block)
        if not self._gone:
            return np.ones(count, np.bool_)
        return np.array([path not in self._gone for path in segment.shards.slice(start, count).to_pylist()], np.bool_)

    def deleted_keys(self, block: int) -> tuple[str, ...]:
        """Keys of a block's rows whose image was deleted."""
        return tuple(key for key, kept in zip(self.block_keys(block), self.kept(block), strict=True) if not kept)

    def read_many(self, rows: Iterable[int]) -> list[Callable[[], bytes]]:
        """One function per row, in order; each gives what `read` gives, is called once, and from any thread.

        Files are read when their function is called. Objects are requested ahead, neighbours together, as long as no
        more than `ahead.AHEAD_BYTES` are waiting to be used: call the functions in about the order of the rows.
        """
        wanted = list(rows)
        if not self._files.remote:
            return [partial(self.read, row) for row in wanted]
        ahead = ReadAhead(self._files.read, [self._place(row) for row in wanted])
        return [partial(self._taken, ahead, i, row) for i, row in enumerate(wanted)]

    def _taken(self, ahead: ReadAhead, number: int, row: int) -> bytes:
        data = ahead.take(number)
        return data if data is not None and self._indexed(row, data) else self.read(row)

    def _place(self, row: int) -> tuple[str, int, int]:
        """Shard, offset and bytes of a row's image."""
        segment, at = self._locate(row)
        return self.shard(row), int(segment.offsets[at]), int(segment.sizes[at])

    def _indexed(self, row: int, data: bytes) -> bool:
        """Whether bytes are those of a row's image when it was indexed."""
        segment, at = self._locate(row)
        return len(data) == int(segment.sizes[at]) and xxhash.xxh3_128_digest(data) == segment.hashes[at].tobytes()

    def check(self) -> None:
        """Compare all segment files with the manifest. Raises StageError."""
        for table in self.segments:
            table.check()

    def spoiled(self) -> tuple[str, ...]:
        """Files beside the segments' that are not what was written; nothing is read from them."""
        found = (t.spoiled(self.block_rows) for t in self.segments)
        return tuple(name for name in found if name is not None)

    def damaged(self) -> tuple[str, ...]:
        """Segment files that are missing or changed; hashes all of them."""
        found = []
        for table in self.segments:
            try:
                table.check()
            except StageError:
                found.append(table.segment.file)
        return tuple(found)

    def _block(self, block: int) -> tuple[SegmentTable, int, int]:
        first, count = self.block_range(block)
        segment, start = self._locate(first)
        return segment, start, count

    def _locate(self, row: int) -> tuple[SegmentTable, int]:
        segment = self.segments[max(0, bisect_right(self._firsts, row) - 1)]
        offset = row - segment.segment.first_row
        if not 0 <= offset < segment.segment.rows:
            raise IndexError(f"dataset {self.manifest.name} has no row {row}")
        return segment, offset


def find_dataset(samples: Store, name: str) -> Store | None:
    """The index that `samples/<name>` points to, or None."""
    return pointed(samples, name)


def open_dataset(
    folder: str | Path | Store, roots: Sequence[str | Path | Store], options: Mapping[str, Any] | None = None
) -> Dataset:
    """Open an index (`samples/<name>-<8 digits>/`, or the pointer `samples/<name>`); `roots` are the folders or URLs
    (`s3://bucket/prefix`) below which its shards are searched, `options` those of fsspec for URLs.
    Raises UserError: no index there, or a damaged manifest."""
    store = open_store(folder, options) if isinstance(folder, str | Path) else folder
    if isinstance(folder, str) and store.remote:  # a path follows its links by itself
        store = pointed(open_store(store.location.rpartition("/")[0], options), store.name) or store
    return Dataset(store, [as_root(root, options=options) for root in roots], read_manifest(store))


def read_manifest(store: Store) -> DatasetManifest:
    """The manifest of an index. Raises UserError when it is missing or damaged."""
    where = store.describe("manifest.json")
    try:
        raw = store.get("manifest.json")
    except OSError as error:
        raise UserError(
            f"{where}: no sample index there ({error.strerror or 'no such object'}).",
            "Index the dataset: unic-pipe index",
        ) from None
    return DatasetManifest.from_bytes(raw, where)


@dataclass(frozen=True)
class DatasetView:
    """A dataset as found: its index, and whether it still matches its source."""

    name: str
    dataset: Dataset | None
    state: State
    reason: str
