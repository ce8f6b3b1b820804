"""An indexed dataset: its rows, blocks, keys and labels, and the bytes of its images.

Legend: N rows. A row is found by its number; numbers have gaps where a segment ended inside a block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.pointers import resolve_pointer
from pipeline.samples.descriptors import ShardFiles
from pipeline.samples.table import hashes_of, labels_of, one_array, rows_digest
from schemas.errors import StageError, UserError
from schemas.samples import DatasetManifest, Segment

FOLDER = "samples"
"""Folder of all indexes, in the working folder."""
TRIES = 3
_WAIT_S = 0.1


class SegmentTable:
    """One segment's columns, each loaded from Parquet when it is first used (all checked against the manifest)."""

    def __init__(self, path: Path, segment: Segment, layout: str) -> None:
        self.segment = segment
        self._path, self._layout = path, layout
        self._lock = threading.RLock()
        self._checked = False

    def check(self) -> None:
        """Compare the file with the manifest. Raises StageError."""
        hash_ = xxhash.xxh3_128()
        try:
            with self._path.open("rb") as handle:
                while piece := handle.read(1 << 20):
                    hash_.update(piece)
            problem = None if hash_.hexdigest() == self.segment.file_digest else "its content changed"
        except OSError as error:
            problem = error.strerror or "cannot be read"
        if problem:
            raise StageError(
                f"{self._path}: the sample index is damaged ({problem}).",
                f"Restore the file, or move {self._path.parent} away and index again: equal data give an equal index.",
            )

    def _column(self, name: str) -> pa.Array:
        with self._lock:
            if not self._checked:
                self.check()
                self._checked = True
            return one_array(pq.read_table(self._path, columns=[name])[name])

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
    """Read access to an indexed dataset. Safe in threads, after a fork, and when pickled (as folder and roots)."""

    def __init__(self, folder: Path, roots: Sequence[Path], manifest: DatasetManifest) -> None:
        self.folder = Path(folder)
        self.roots = tuple(Path(root) for root in roots)
        self.manifest = manifest
        self.segments = tuple(SegmentTable(self.folder / s.file, s, manifest.layout) for s in manifest.segments)
        self._firsts = np.array([s.first_row for s in manifest.segments])
        self._files = ShardFiles(self.roots)

    def __reduce__(self) -> tuple[object, tuple[Path, tuple[Path, ...]]]:
        return open_dataset, (self.folder, self.roots)

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
        return rows_digest(segment.keys.slice(start, count), segment.hashes[start : start + count])

    def rows(self) -> npt.NDArray[np.int64]:
        """All row numbers, int64 (N,), increasing."""
        return np.concatenate([np.arange(s.first_row, s.first_row + s.rows) for s in self.manifest.segments])

    def labels(self) -> npt.NDArray[np.int64]:
        """Class numbers in the order of `rows()`, int64 (N,), -1 where there is none."""
        return np.concatenate([segment.labels for segment in self.segments]).astype(np.int64)

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
            UserError: the shard is under none of the roots.
            StageError: three tries gave an I/O error or other bytes.
        """
        segment, at = self._locate(row)
        shard, offset, size = self.shard(row), int(segment.offsets[at]), int(segment.sizes[at])
        expected, problem = segment.hashes[at].tobytes(), ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(_WAIT_S * attempt)
            try:
                data = self._files.read(shard, offset, size)
            except FileNotFoundError:
                problem = "missing"
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
            else:
                if len(data) == size and xxhash.xxh3_128_digest(data) == expected:
                    return data
                problem = "is not the data that was indexed"
            self._files.forget(shard)
        name = self.manifest.name
        if problem == "missing":
            raise UserError(
                f"dataset {name}: {shard} is not there (looked in {', '.join(map(str, self.roots))}).",
                "Has the data moved? Set `samples.roots` to the folder that holds it.",
            )
        raise StageError(
            f"dataset {name}: {shard}, byte {offset:,} ({size:,} bytes, key {self.key(row)!r}) {problem}.",
            "Restore the file from its source; or index the changed data as another dataset (a new name).",
        )

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
        segment = self.segments[max(0, int(np.searchsorted(self._firsts, row, side="right")) - 1)]
        offset = row - segment.segment.first_row
        if not 0 <= offset < segment.segment.rows:
            raise IndexError(f"dataset {self.manifest.name} has no row {row}")
        return segment, int(offset)


def find_dataset(workdir: Path, name: str) -> Path | None:
    """The index folder that `samples/<name>` points to, or None."""
    return resolve_pointer(workdir / FOLDER, name)


def open_dataset(folder: str | Path, roots: Sequence[str | Path]) -> Dataset:
    """Open an index (`samples/<name>-<8 digits>/`, or the pointer `samples/<name>`); `roots` are the folders in which its
    shards are searched.

    Raises:
        UserError: no index there, or a damaged manifest.
    """
    return Dataset(Path(folder), [Path(root) for root in roots], read_manifest(Path(folder)))


def read_manifest(folder: Path) -> DatasetManifest:
    """The manifest of an index folder. Raises UserError when it is missing or damaged."""
    path = Path(folder) / "manifest.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: no sample index there ({error.strerror}).", "Index the dataset: unic-pipe index"
        ) from None
    return DatasetManifest.from_bytes(raw, str(path))
