"""A feature folder on disk: its manifest, and the records that say which units are finished.

A unit is finished when its record is there, undamaged, in its place, and names this folder's definition and the
expected rows; files are never counted. Records are written loose, one JSON file and one statistics sidecar per unit,
and folded into one table per (view, token type). Where both exist the loose record is in force: it is newer, or equal.

Free of torch and zarr, so that planning is quick.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.folded import Entry, FoldedContent, FoldedTable, folded_bytes, parse_record, placed, read_folded
from pipeline.cache.layout import (
    DAMAGED,
    MANIFEST,
    folded_key,
    record_key,
    records_folder,
    statistics_key,
)
from pipeline.storage import LocalStore, fast_hash
from schemas.base import digest_of
from schemas.config import TokenType
from schemas.errors import StageError, UserError
from schemas.features import FeatureManifest, UnitRecord

TOKENS: tuple[TokenType, ...] = get_args(TokenType)
Plane = tuple[int, TokenType]
"""(view, token type): with a block, the coordinates of a unit."""

REPAIR = "Run `unic-pipe verify`, then `unic-pipe extract`: it makes again only what is damaged."


class FeatureFolder:
    """One encoder's features of one dataset, seen through its documents. Safe to share between threads and to pickle."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self._manifest: FeatureManifest | None = None
        self._tables: dict[Plane, tuple[tuple[int, int, int] | None, FoldedTable]] = {}

    def __reduce__(self) -> tuple[type[FeatureFolder], tuple[LocalStore]]:
        return type(self), (self.store,)

    def __repr__(self) -> str:
        return f"FeatureFolder({self.store.root})"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.store.root

    @property
    def manifest(self) -> FeatureManifest | None:
        """The manifest, or None if the folder has none.

        Raises:
            StageError: the manifest is damaged.
        """
        if self._manifest is None:
            try:
                raw = self.store.get(MANIFEST)
            except (FileNotFoundError, NotADirectoryError):
                return None
            self._manifest = _parse_manifest(raw, str(self.store.path(MANIFEST)))
        return self._manifest

    def required_manifest(self) -> FeatureManifest:
        """The manifest.

        Raises:
            StageError: there is none, or it is damaged.
        """
        manifest = self.manifest
        if manifest is None:
            raise StageError(f"{self.path} holds no features (no {MANIFEST}).", "Run `unic-pipe extract`.")
        return manifest

    def create(self, manifest: FeatureManifest) -> FeatureManifest:
        """Write the manifest once; whoever comes later adopts it. A damaged one is kept in `damaged/` and replaced.

        Raises:
            StageError: the folder belongs to another definition.
        """
        raw = manifest.to_bytes()
        if not self.store.create(MANIFEST, raw):
            with self.lock():
                existing = self.store.get(MANIFEST)
                try:
                    found = _parse_manifest(existing, str(self.store.path(MANIFEST)))
                except StageError:
                    self.keep_damaged(MANIFEST, existing)
                    self.store.put(MANIFEST, raw)
                    found = manifest
            if found.digest != manifest.digest:
                raise StageError(
                    f"{self.path} holds features of another definition ({found.digest[:8]}, not {manifest.digest[:8]}).",
                    "Rename that folder, then run `unic-pipe extract` again.",
                )
            manifest = found
        self._manifest = manifest
        return manifest

    def planes(self) -> list[Plane]:
        """Every (view, token type) that has records, loose or folded."""
        views = [(int(f.name.removeprefix("view-")), f) for f in sorted(self.store.path("records").glob("view-[0-9]*"))]
        return [
            (view, token)
            for view, folder in views
            for token in TOKENS
            if (folder / token).is_dir() or (folder / f"{token}.parquet").is_file()
        ]

    def covered(self, view: int, token: TokenType, rows_digests: Sequence[str]) -> NDArray[np.bool_]:
        """Which blocks are finished: bool (blocks,), for blocks whose rows have these digests."""
        definition = self.required_manifest().digest
        done = np.zeros(len(rows_digests), bool)
        for block, made_from, rows in self._table(view, token).planning():
            if block < len(done):
                done[block] = made_from == definition and rows == rows_digests[block]
        for block, document in self.loose(view, token).items():
            if block < len(done):
                body = json.loads(document)
                done[block] = body["definition"] == definition and body["rows"] == rows_digests[block]
        return done

    def records(self, view: int, token: TokenType) -> dict[int, UnitRecord]:
        """Every record in force, by block in ascending order."""
        documents = self._table(view, token).documents() | self.loose(view, token)
        definition = self.required_manifest().digest
        parsed = ((b, parse_record(documents[b], record_key(view, token, b))) for b in sorted(documents))
        return {b: r for b, r in parsed if r is not None and r.definition == definition}

    def batches(self, view: int, token: TokenType) -> set[int]:
        """Batch sizes with which the units were made; more than one after a smaller batch was forced."""
        loose = {json.loads(document)["batch"] for document in self.loose(view, token).values()}
        return self._table(view, token).batches() | loose

    def record(self, view: int, token: TokenType, block: int) -> UnitRecord | None:
        """The record in force of one unit, or None if it is not finished."""
        document = self._loose_document(view, token, block) or self._table(view, token).document(block)
        record = parse_record(document, record_key(view, token, block)) if document else None
        return record if record is not None and record.definition == self.required_manifest().digest else None

    def loose(self, view: int, token: TokenType) -> dict[int, bytes]:
        """Documents of undamaged loose records in their place, by block."""
        found: dict[int, bytes] = {}
        for block in self.loose_blocks(view, token):
            document = self._loose_document(view, token, block)
            if document is not None:
                found[block] = document
        return found

    def loose_blocks(self, view: int, token: TokenType, suffix: str = ".json") -> list[int]:
        """Blocks for which a loose file of this kind exists, damaged or not."""
        try:
            names = os.listdir(self.store.path(records_folder(view, token)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def statistics(self, view: int, token: TokenType, records: Mapping[int, UnitRecord]) -> dict[int, bytes]:
        """Verified statistics of these units, by block.

        Raises:
            StageError: a sidecar is missing or damaged.
        """
        found: dict[int, bytes] = {}
        for block, record in records.items():
            raw = self._get(statistics_key(view, token, block))
            if raw is not None and fast_hash(raw) == record.files[-1].xxh3:
                found[block] = raw
        missing = [block for block in records if block not in found]
        if missing:
            folded = self._get(folded_key(view, token))
            entries = read_folded(folded, view, token).entries if folded is not None else {}
            for block in missing:
                entry = entries.get(block)
                if entry is None or fast_hash(entry.statistics) != records[block].files[-1].xxh3:
                    raise StageError(
                        f"{self.store.path(statistics_key(view, token, block))} is missing or damaged "
                        f"(statistics of view {view}, {token}, block {block}).",
                        REPAIR,
                    )
                found[block] = entry.statistics
        return {block: found[block] for block in records}

    def fold(self, view: int, token: TokenType) -> None:
        """Fold loose records into the table. Killed anywhere, or run by two at once, it loses nothing.

        The new table replaces the old one in one step before any loose file goes; a loose file goes only if it is
        still what was folded, and its sidecar before it, so that a record never stands without statistics.
        """
        loose = self.loose_blocks(view, token) or self.loose_blocks(view, token, ".stats")
        if not loose and not self._table(view, token).damaged:
            return
        with self.lock():
            self._rewrite(view, token, frozenset())

    def void(self, view: int, token: TokenType, blocks: Sequence[int]) -> None:
        """Take units out of force: their records move to `damaged/`, so that the next extract makes them again.

        Without blocks, a damaged table is written anew from what could be restored.
        """
        with self.lock():
            table = self._table(view, token)
            for block in blocks:
                key = record_key(view, token, block)
                for document in (self._get(key), table.document(block)):
                    if document is not None:
                        self.keep_damaged(key, document)
                self.store.delete(key)
                self.store.delete(statistics_key(view, token, block))
            if not blocks or table.damaged or any(table.document(block) is not None for block in blocks):
                self._rewrite(view, token, frozenset(blocks))

    def set_aside(self, key: str) -> None:
        """Move a damaged file that can be derived again to `damaged/`."""
        raw = self._get(key)
        if raw is not None:
            self.keep_damaged(key, raw)
            self.store.delete(key)

    def keep_damaged(self, key: str, raw: bytes) -> None:
        """Copy a damaged file to `damaged/`, beside earlier ones of the same name."""
        name, copy = f"{DAMAGED}/{key}", 0
        while not self.store.create(name, raw) and self._get(name) != raw:
            copy += 1
            name = f"{DAMAGED}/{key}.{copy}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process or thread at a time among those that rewrite shared files; a kill releases it."""
        path = self.store.path(".tmp/records.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # A sweep of old temporary files may have removed the file while we waited for it.
                if _same_file(descriptor, path):
                    os.utime(descriptor, (time.time(),) * 2)
                    yield
                    return
            finally:
                os.close(descriptor)

    def _rewrite(self, view: int, token: TokenType, without: frozenset[int]) -> None:
        key, definition = folded_key(view, token), self.required_manifest().digest
        # Loose records first: what another machine, whose lock does not reach here, folds meanwhile is in its table.
        loose = self._whole_loose(view, token)
        old = self._get(key)
        folded = read_folded(old, view, token) if old is not None else FoldedContent({})
        if old is not None and folded.damaged:
            self.keep_damaged(key, old)
        entries = dict(folded.entries)
        entries |= {b: e for b, e in loose.items() if json.loads(e.document)["definition"] == definition}
        entries = {b: e for b, e in entries.items() if b not in without}
        new = folded_bytes(entries) if entries else None
        if new is None:
            self.store.delete(key)
        elif new != old:
            self.store.put(key, new)
        for block in self.loose_blocks(view, token, ".stats"):
            entry = entries.get(block)
            if entry is not None and self._get(statistics_key(view, token, block)) == entry.statistics:
                self.store.delete(statistics_key(view, token, block))
        for block in self.loose_blocks(view, token):
            entry = entries.get(block)
            if entry is not None and self._get(record_key(view, token, block)) == entry.document:
                self.store.delete(record_key(view, token, block))

    def _whole_loose(self, view: int, token: TokenType) -> dict[int, Entry]:
        whole: dict[int, Entry] = {}
        for block, document in self.loose(view, token).items():
            statistics = self._get(statistics_key(view, token, block))
            if statistics is not None and fast_hash(statistics) == json.loads(document)["files"][-1]["xxh3"]:
                whole[block] = Entry(document, statistics)
        return whole

    def _loose_document(self, view: int, token: TokenType, block: int) -> bytes | None:
        document = self._get(record_key(view, token, block))
        return document if document is not None and placed(document, view, token) == block else None

    def _table(self, view: int, token: TokenType) -> FoldedTable:
        path = self.store.path(folded_key(view, token))
        try:
            stat = path.stat()
            signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            signature = None
        cached = self._tables.get((view, token))
        if cached is None or cached[0] != signature:
            cached = signature, FoldedTable(path, view, token)
            self._tables[view, token] = cached
        return cached[1]

    def _get(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _parse_manifest(raw: bytes, source: str) -> FeatureManifest:
    try:
        manifest = FeatureManifest.from_bytes(raw, source)
        if digest_of(manifest.definition) != manifest.digest:
            raise UserError(f"{source}: the digest is not that of the definition.")
    except UserError as error:
        raise StageError(
            error.message, "Run `unic-pipe extract`: it writes the manifest again and keeps finished units."
        ) from error
    return manifest


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
