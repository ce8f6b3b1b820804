"""Hashing what is to be indexed: pieces of a source, scanned by threads, their results kept until the index is done.

A killed indexing loses the pieces in flight only: finished ones wait in `runs/index/<dataset>/`, each under a name that
holds the path, size and mtime of its files.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.folders import ImageFolder, scan_folder
from unic_pipe.pipeline.samples.packed import Packed
from unic_pipe.pipeline.samples.places import Shard, Stamp, stamp, stamp_now
from unic_pipe.pipeline.samples.shards import scan_tar
from unic_pipe.pipeline.samples.table import ROW_SCHEMA, from_parquet, to_parquet
from unic_pipe.pipeline.storage import LocalStore, fast_hash
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.samples import ImageNames, ShardEntry

_VERSION = "2"
_KEEP_FROM_BYTES = 16 << 20
IMAGES_PER_PIECE = 2048


class IndexingStopped(StageError):
    """Somebody asked for the end; finished pieces are kept for the next run."""


@dataclass(frozen=True)
class TarPiece:
    """One tar."""

    shard: str
    file: Shard
    label_field: str | None
    rule: ImageNames

    @property
    def weight(self) -> int:
        """Bytes."""
        return stamp(self.file).size

    def identity(self) -> str:
        """Path, size, mtime (and ETag of an object), and where labels are."""
        return self._identity(stamp(self.file))

    def scan(self) -> pa.Table:
        """Rows in the order of the tar's images."""
        before = self.identity()
        rows = scan_tar(self.file, self.shard, self.label_field, self.rule)
        now = stamp_now(self.file)
        if now is None or self._identity(now) != before:
            raise UserError(f"{self.shard}: changed while it was indexed.", "Wait until it is written, then run again.")
        return rows

    def entry(self, rows: Packed) -> ShardEntry:
        """Path, size, mtime and ETag now."""
        now = stamp(self.file)
        return ShardEntry(path=self.shard, size=now.size, mtime_ns=now.mtime_ns, etag=now.etag)

    def _identity(self, now: Stamp) -> str:
        etag = "" if now.etag is None else f"\0{now.etag}"
        return f"{self.shard}\0{now.size}\0{now.mtime_ns}\0{self.label_field}{etag}\0{self.rule}"


@dataclass(frozen=True)
class FolderPiece:
    """Some images of one folder."""

    folder: ImageFolder
    names: tuple[str, ...]
    rule: ImageNames

    @property
    def weight(self) -> int:
        """Images."""
        return len(self.names)

    def identity(self) -> str:
        """Path, size and mtime of every image."""
        parts = [f"{self.folder.path}\0{self.folder.label}\0{self.rule}"]
        for name in self.names:
            path = self.folder.folder / name
            if path.exists():  # what is missing is an error of the scan
                parts.append(f"{name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}")
        return "\0".join(parts)

    def scan(self) -> pa.Table:
        """Rows in the order of the names."""
        return scan_folder(self.folder, self.names, self.rule)

    def entry(self, rows: Packed) -> ShardEntry:
        """The folder, with the bytes and number of these images."""
        # A folder's mtime does not say what happens in the folders below it.
        below = any(map(os.path.isdir, os.scandir(self.folder.folder)))
        mtime = 0 if below else self.folder.folder.stat().st_mtime_ns
        return ShardEntry(path=self.folder.path, size=rows.image_bytes, mtime_ns=mtime, files=rows.num_rows)


Piece = TarPiece | FolderPiece
"""Part of a source that one thread scans."""


def folder_pieces(folders: Sequence[ImageFolder], rule: ImageNames) -> list[Piece]:
    """Folders cut into pieces of at most `IMAGES_PER_PIECE` images, in order."""
    return [
        FolderPiece(folder, folder.names[at : at + IMAGES_PER_PIECE], rule)
        for folder in folders
        for at in range(0, len(folder.names), IMAGES_PER_PIECE)
    ]


def entries_of(pieces: Sequence[Piece], tables: Sequence[Packed]) -> tuple[ShardEntry, ...]:
    """Manifest entries of scanned pieces; pieces of one folder are added up."""
    merged: dict[str, ShardEntry] = {}
    for piece, table in zip(pieces, tables, strict=True):
        new = piece.entry(table)
        old = merged.get(new.path)
        if old is not None and old.files is not None and new.files is not None:
            new = new.model_copy(update={"size": old.size + new.size, "files": old.files + new.files})
        merged[new.path] = new
    return tuple(merged.values())


def scan_pieces(
    pieces: Sequence[Piece], scratch: LocalStore, progress: Reporter, title: str, stop: Stop | None = None
) -> list[Packed]:
    """Scan all pieces with threads; their rows in the order of the pieces.

    Raises:
        UserError: damage, that of several pieces at once (finished pieces are kept for the next run).
        IndexingStopped: `stop` was requested; what was in flight is finished.
    """
    weights = [piece.weight for piece in pieces]
    tars = bool(pieces) and isinstance(pieces[0], TarPiece)
    scale, unit = (1 << 20, "MiB") if tars else (1, "img")
    tables = [Packed(ROW_SCHEMA.empty_table())] * len(pieces)
    problems: dict[int, UserError] = {}
    pool = ThreadPoolExecutor(threads(len(pieces)))
    try:
        with progress.task(title, total=sum(weights) // scale, unit=unit) as task:
            futures = {pool.submit(_scan, piece, scratch): i for i, piece in enumerate(pieces)}
            done = 0
            for finished, future in enumerate(as_completed(futures)):
                if stop is not None and stop.requested:
                    raise IndexingStopped(f"{title}: stopped after {finished} of {len(pieces)} pieces.")
                i = futures[future]
                try:
                    tables[i] = future.result()
                except UserError as error:
                    problems[i] = error
                before, done = done // scale, done + weights[i]
                task.advance(done // scale - before)
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        raise _together([problems[i] for i in sorted(problems)])
    return tables


def threads(pieces: int) -> int:
    """How many pieces are read at a time."""
    return min(16, 4 * (os.cpu_count() or 1), max(1, pieces))


def _scan(piece: Piece, scratch: LocalStore) -> Packed:
    name = fast_hash(f"{_VERSION}\0{piece.identity()}".encode()) + ".rows"
    kept = scratch.path(name)
    if kept.exists():
        data = kept.read_bytes()
        if xxhash.xxh3_128_digest(data[16:]) == data[:16]:
            return Packed(from_parquet(data[16:]))
    rows = piece.scan()
    packed = Packed(rows)
    if packed.image_bytes >= _KEEP_FROM_BYTES:
        data = to_parquet(rows)
        scratch.put(name, xxhash.xxh3_128_digest(data) + data)
    return packed


def _together(problems: list[UserError]) -> UserError:
    if len(problems) == 1:
        return problems[0]
    shown = "\n".join(problem.message for problem in problems[:3])
    more = f"\n... and {len(problems) - 3} more" if len(problems) > 3 else ""
    return UserError(f"{shown}{more}", problems[0].hint)
