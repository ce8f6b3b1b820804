"""Documents of the sample index: the manifest, and the columns of its Parquet segments."""

from __future__ import annotations

from typing import ClassVar, Literal

from unic_pipe.schemas.base import Digest, Document, FastHash, InsidePath, Model, Name

INDEX_COLUMNS = ("row", "key", "shard", "offset", "size", "xxh3", "label")
"""Columns of a segment. row int64; key, shard string (shard: path relative to a root); offset, size int64 (bytes of
the image member inside the shard); xxh3 fixed 16 bytes (XXH3-128 of those bytes, big-endian digest); label int32 or null."""


class ImageNames(Model):
    """Which files and tar members are images, and their keys. Keys seed the views, so an index keeps its rule."""

    version: Literal[1, 2] = 1
    """1: no gif, jfif and jpe; keys of tar members end at the first dot; linked folders are not entered. 2: they are read,
    keys end where the image's own ending begins, linked folders are entered."""
    image: str | None = None
    """The only ending that is an image, without its first dot (`jpg`, `left.png`); None: every known one."""


Background = Literal["none", "white", "grey", "black"]


class Decoding(Model):
    """How images become pixels: part of what features are made from."""

    background: Background = "none"
    """What transparent images lie on. `none`: their alpha is dropped, and what is stored under it shows."""
    max_pixels: int | None = None
    """Images with more pixels are void; None: Pillow's own limit, 178,956,970."""


class ShardEntry(Model):
    """What holds samples, a tar or a folder of images: path relative to a root, bytes, and mtime when indexed."""

    path: str
    size: int
    """Bytes of the tar, or of the folder's images that this segment indexed."""
    mtime_ns: int
    """Information only: copied data stay the same data. 0 for objects, and for folders with folders in them."""
    files: int | None = None
    """Images that this segment indexed from a folder; None for a tar."""
    etag: str | None = None
    """ETag (or generation) of an object when indexed: another one means that it was written again. None for files."""


class Segment(Model):
    """A run of rows that was indexed together. Starts on a block boundary; never changes."""

    file: InsidePath
    """Parquet file beside the manifest."""
    first_row: int
    rows: int
    rows_digest: Digest
    """SHA-256 over each row's key and content hash, in order: the identity of the data."""
    labels_digest: Digest
    """SHA-256 over the labels, in order (outside feature identity)."""
    file_digest: FastHash
    shards: tuple[ShardEntry, ...]


class DatasetManifest(Document):
    """The index of one dataset: `samples/<name>-<8 digits of rows digest>/manifest.json`."""

    KIND: ClassVar[str] = "dataset"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    name: Name
    source: str
    """As configured, relative to a root."""
    layout: Literal["tars", "class-folders", "flat-folder", "listed"]
    block_rows: int
    classes: tuple[str, ...] | None
    """Class names in label order, where the source has names; without them a class is known by its number."""
    labelled: bool
    permuted: bool
    """Whether rows were put in a seeded random order because the source was sorted by class."""
    prefixed: bool = False
    """Whether keys are `shard/key` because numbered keys repeat across tars."""
    label_source: str = "none"
    """`cls`, `json:FIELD`, `folders` (`folders:numbers`: their names are the numbers; `folders:one`: no labels),
    `list:SHA-256` of the labels file (`file:SHA-256`: as it was read before names and columns were checked),
    `BENCHMARK/SPLIT:XXH3` of names and sizes of a benchmark's lists, or `none`; `-1` follows where 1 was subtracted. A
    change means new labels."""
    names: ImageNames = ImageNames()
    decoding: Decoding = Decoding()
    gone: tuple[str, ...] = ()
    """Paths (relative to a root) of images that were deleted after they were indexed: their rows are void."""
    segments: tuple[Segment, ...]

    @property
    def digest(self) -> str:
        """The dataset's lineage: the digest of its first segment, which growth never changes."""
        return self.segments[0].rows_digest

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(s.rows for s in self.segments)

    @property
    def end_row(self) -> int:
        """One past the last row number; larger than `rows` where a segment ended inside a block."""
        return self.segments[-1].first_row + self.segments[-1].rows

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.end_row // self.block_rows)
