"""Reading features: `FeatureCache`. Nothing is decoded before its record and the shard's hash have been checked.

Legend: N rows of a block, P tokens per row, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.arrays import decode_part
from unic_pipe.pipeline.cache.calibration import bound_codec
from unic_pipe.pipeline.cache.layout import MANIFEST, escape_key, shard_key
from unic_pipe.pipeline.cache.records import REPAIR, FeatureFolder
from unic_pipe.pipeline.cache.spec import Decoded, Floats, row_shape
from unic_pipe.pipeline.storage import LocalStore, Store, fast_hash, is_remote, open_store
from unic_pipe.pipeline.storage.pointers import followed, pointed
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import FeatureDefinition, FeatureManifest, FileEntry, UnitRecord
from unic_pipe.schemas.losses import TOKENS

if TYPE_CHECKING:
    from unic_pipe.pipeline.cache.coefficients import Coefficients
    from unic_pipe.pipeline.cache.loading import CachedBatches
    from unic_pipe.pipeline.samples.dataset import Dataset

Bools = NDArray[np.bool_]


class Block(NamedTuple):
    """Features of one block; rows that are not valid are NaN."""

    values: Floats
    """(N, D) for `cls`, (N, P, D) for `patch`."""
    valid: Bools
    """(N,)"""


class FeatureCache:
    """One encoder's features of one dataset, read-only. It pickles as its location, and each process opens its own."""

    def __init__(self, folder: Path | Store) -> None:
        self._folder = FeatureFolder(LocalStore(folder) if isinstance(folder, Path) else folder)
        self.manifest: FeatureManifest = self._folder.required_manifest()
        self._records: dict[tuple[int, TokenType], dict[int, UnitRecord]] = {}

    @classmethod
    def open(cls, path: str | PathLike[str], options: Mapping[str, Any] | None = None) -> FeatureCache:
        """Open a feature folder, or the pointer `features/<dataset>-<encoder>` to one: a path, or an `s3://` or `gs://`
        address with fsspec's `options`.

        Raises:
            UserError: there is no such folder.
            StageError: it holds no features, or its manifest is damaged.
            DamagedError: the pointer leads to another name's folder.
        """
        text = fspath(path)
        if not is_remote(text):
            folder = Path(text)
            if folder.is_dir():
                return cls(followed(folder))
            store: Store = LocalStore(folder)
            beside = [n for n in LocalStore(folder.parent).names() if (folder.parent / n / MANIFEST).is_file()]
        else:
            store = open_store(text, options)
            above = open_store(store.location.rpartition("/")[0], options)
            store = pointed(above, store.name) or store
            if store.names():
                return cls(store)
            beside = above.folders()
        known = f"There are: {', '.join(beside)}." if beside else "Run `unic-pipe extract` to make one."
        raise UserError(f"No feature folder {store.location}.", known)

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Store]]:
        return type(self), (self._folder.store,)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{token} {'×'.join(map(str, shape))}" for token, shape in self.shapes.items())
        units = ", ".join(f"view {v} {t}: {len(self.records(v, t))} blocks" for v, t in self._folder.planes())
        codec = self.definition.codec.name
        return (
            f"<FeatureCache {self.manifest.encoder} of {self.manifest.dataset}: {sizes}, {codec}; {units or 'empty'}>"
        )

    @property
    def name(self) -> str:
        """Name of the feature folder."""
        return self._folder.name

    @property
    def location(self) -> str:
        """Where it is: a path, or an address in an object store."""
        return self._folder.location

    @property
    def folder(self) -> FeatureFolder:
        """The folder's documents, for planning and statistics."""
        return self._folder

    @property
    def definition(self) -> FeatureDefinition:
        """What the features are made from."""
        return self.manifest.definition

    @property
    def digest(self) -> str:
        """Digest of the definition."""
        return self.manifest.digest

    @property
    def dims(self) -> dict[TokenType, int]:
        """D of each token type."""
        return {"cls": self.definition.encoder.cls_dim, "patch": self.definition.encoder.patch_dim}

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens."""
        return self.definition.encoder.grid

    @property
    def shapes(self) -> dict[TokenType, tuple[int, ...]]:
        """Shape of one row's features: (D,) and (P, D)."""
        return {token: row_shape(self.definition, token) for token in TOKENS}

    @property
    def block_rows(self) -> int:
        """Rows of a full block; row r is in block r // block_rows."""
        return self.definition.block_rows

    def records(self, view: int, token: TokenType) -> dict[int, UnitRecord]:
        """Records of the finished units, by block. Read once, and again when a block is asked for that is not there."""
        if (view, token) not in self._records:
            self._records[view, token] = self._folder.records(view, token)
        return self._records[view, token]

    def valid(self, view: int, token: TokenType, block: int) -> Bools:
        """Which rows of a block can be used, (N,), without reading features.
        Raises StageError: the unit is not extracted yet."""
        return valid_rows(self._record(view, token, block))

    def loader(
        self,
        dataset: Dataset,
        *,
        batch: int,
        view: int = 0,
        tokens: tuple[TokenType, ...] | None = None,
        size: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        window: int = 8,
        shuffle: bool = True,
    ) -> CachedBatches:
        """Batches of (images, targets) for any PyTorch loop: uint8 (B, 3, S, S), and a dict of float32 tensors `cls`
        (B, D) and `patch` (B, P, D) of the same view of the same rows.

        Args:
            dataset: the samples that the features were extracted from.
            batch: rows of a batch.
            view: which view.
            tokens: token types to read; those that the view has by default.
            size: image side in pixels; the encoder's own by default.
            seed, epoch: of the order, which is the same in every process.
            window: blocks that are shuffled together, and kept in memory.
            shuffle: False: rows in order, the last batch smaller.

        Raises:
            UserError: other samples, or token types that the view does not have.
        """
        from unic_pipe.pipeline.cache.loading import CachedBatches

        if dataset.digest != self.definition.dataset or dataset.block_rows != self.block_rows:
            raise UserError(
                f"{self.name} was not extracted from {dataset.manifest.name}: dataset digest differs "
                f"({self.definition.dataset[:8]}, not {dataset.digest[:8]}).",
                "Open the dataset that it names: Dataset.open('samples/" + self.manifest.dataset + "').",
            )
        there = [token for token in self.shapes if self.records(view, token)]
        chosen = tuple(there) if tokens is None else tokens
        if not chosen or not set(chosen) <= set(there):
            raise UserError(
                f"View {view} of {self.name} has {' and '.join(there) or 'no'} tokens, not "
                f"{', '.join(chosen) or 'any'}.",
                "Choose another view, or extract it: unic-pipe extract",
            )
        blocks = 1 + min(max(self.records(view, token)) for token in chosen)
        side = size or self.definition.encoder.image_size
        return CachedBatches(self, dataset, batch, view, chosen, side, seed, epoch, window, shuffle, blocks)

    def read_block(self, view: int, token: TokenType, block: int, rows_digest: str | None = None) -> Block:
        """Features of a unit as float32. With `rows_digest`, only if they are those of exactly these rows.
        Raises StageError: the unit is not extracted yet, is damaged, or belongs to other rows."""
        decoded = self.read_block_raw(view, token, block, rows_digest)
        return Block(decoded.values(), decoded.present)

    def read_block_raw(
        self, view: int, token: TokenType, block: int, rows_digest: str | None = None
    ) -> Decoded | Coefficients:
        """Stored numbers of a unit with what turns them into features, for decoding on the training device.
        Raises StageError: the unit is not extracted yet, is damaged, or belongs to other rows."""
        return self.read_block_timed(view, token, block, rows_digest)[0]

    def read_block_timed(
        self, view: int, token: TokenType, block: int, rows_digest: str | None = None
    ) -> tuple[Decoded | Coefficients, float]:
        """As `read_block_raw`, and the seconds for which it waited for the storage."""
        record = self._record(view, token, block)
        if rows_digest is not None and record.rows != rows_digest:
            raise StageError(
                f"{self.manifest.encoder}, view {view}, {token}, block {block} was extracted from other samples than "
                f"{self.manifest.dataset} holds now.",
                "Run `unic-pipe extract`: it makes again what does not match.",
            )
        codec = bound_codec(self._folder, token)
        if record.calibration != codec.calibration:
            raise self._damage(record.files[0].path, record, "it was stored by another calibration")
        entries = {entry.path: entry for entry in record.files}
        keys = [shard_key(view, spec, block) for spec in codec.arrays]
        started = time.perf_counter()
        shards = [self._verified(entries.get(key), key, record) for key in keys]
        reading_s = time.perf_counter() - started
        parts = tuple(decode_part(spec, shard) for spec, shard in zip(codec.arrays, shards, strict=True))
        escape = escape_key(view, token, block)
        table = self._verified(entries[escape], escape, record) if escape in entries else b""
        decoded = codec.decode(parts, record.count, table)
        if not np.array_equal(decoded.present, valid_rows(record)):
            raise self._damage(keys[0], record, "its rows are not those of its record")
        return decoded, reading_s

    def _record(self, view: int, token: TokenType, block: int) -> UnitRecord:
        record = self.records(view, token).get(block)
        if record is None:
            record = self._folder.record(view, token, block)
            if record is None:
                raise StageError(
                    f"{self.manifest.encoder} of {self.manifest.dataset} is not extracted yet: "
                    f"view {view}, {token}, block {block}.",
                    "Run `unic-pipe extract`.",
                )
            self.records(view, token)[block] = record
        return record

    def _verified(self, entry: FileEntry | None, key: str, record: UnitRecord) -> bytes:
        """The shard's bytes, if they are what the record says: only these are decoded, never the file again."""
        if entry is None:
            raise self._damage(key, record, "its record does not list it")
        try:
            raw = self._folder.store.get(key)
        except (FileNotFoundError, NotADirectoryError):
            raise self._damage(key, record, "missing") from None
        if len(raw) != entry.size:
            raise self._damage(key, record, f"{len(raw):,} bytes instead of {entry.size:,}")
        if fast_hash(raw) != entry.xxh3:
            raise self._damage(key, record, "its content has changed")
        return raw

    def _damage(self, key: str, record: UnitRecord, what: str) -> StageError:
        where = f"{self.manifest.encoder}, view {record.view}, {record.token}, block {record.block}"
        return StageError(f"Damaged: {self._folder.store.describe(key)} ({where}): {what}.", REPAIR)


def valid_rows(record: UnitRecord) -> Bools:
    """Which rows of a unit can be used: bool (N,)."""
    bits = np.frombuffer(bytes.fromhex(record.valid), np.uint8)
    return np.unpackbits(bits, count=record.count).astype(bool)
