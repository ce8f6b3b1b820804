"""A feature folder on disk: its manifest, and the records that say which units are finished.

A unit is finished when its record is there, undamaged, in its place, and names this folder's definition and the
expected rows; files are never counted. Records are written loose, one JSON file and one statistics sidecar per unit,
and folded into one table per (view, token type). Where both exist the loose record is in force: it is newer, or equal.

Free of torch and zarr, so that planning is quick.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.folded import (
    Entry,
    FoldedContent,
    FoldedTable,
    folded_bytes,
    parse_record,
    placed,
    read_folded,
)
from unic_pipe.pipeline.cache.layout import DAMAGED, MANIFEST, folded_key, record_key, records_folder, statistics_key
from unic_pipe.pipeline.storage import LocalStore, Store, Version, fast_hash, get_or_none
from unic_pipe.schemas.base import digest_of, short
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import FeatureManifest, UnitRecord
from unic_pipe.schemas.losses import TOKENS

Plane = tuple[int, TokenType]
"""(view, token type): with a block, the coordinates of a unit."""

REPAIR = "Run `unic-pipe verify`, then `unic-pipe extract`: it makes again only what is damaged."


class FeatureFolder:
    """One encoder's features of one dataset, seen through its documents. Safe to share between threads and to pickle.

    `frozen`: seen at one moment, by one listing of its records; for planning, where each request counts.
    """

    def __init__(self, store: Store, frozen: bool = False) -> None:
        self.store = store
        self._manifest: FeatureManifest | None = None
        self._tables: dict[Plane, tuple[Version | None, FoldedTable]] = {}
        self._listing = store.listing("records") if frozen else None

    def __reduce__(self) -> tuple[type[FeatureFolder], tuple[Store]]:
        return type(self), (self.store,)

    def __repr__(self) -> str:
        return f"FeatureFolder({self.store.location})"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.store.name

    @property
    def location(self) -> str:
        """Where it is."""
        return self.store.location

    @property
    def manifest(self) -> FeatureManifest | None:
        """The manifest, or None if the folder has none. Raises StageError: the manifest is damaged."""
        if self._manifest is None:
            raw = get_or_none(self.store, MANIFEST)
            if raw is None:
                return None
            self._manifest = _parse_manifest(raw, self.store.describe(MANIFEST))
        return self._manifest

    def required_manifest(self) -> FeatureManifest:
        """The manifest. Raises StageError: there is none, or it is damaged."""
        manifest = self.manifest
        if manifest is None:
            raise StageError(f"{self.location} holds no features (no {MANIFEST}).", "Run `unic-pipe extract`.")
        return manifest

    def create(self, manifest: FeatureManifest) -> FeatureManifest:
        """Write the manifest once; whoever comes later adopts it. A damaged one is kept in `damaged/` and replaced.
        Raises StageError: the folder belongs to another definition."""
        raw = manifest.to_bytes()
        while not self.store.create(MANIFEST, raw):
            version, existing = self.store.version(MANIFEST), get_or_none(self.store, MANIFEST)
            if existing is None:
                continue
            try:
                found = _parse_manifest(existing, self.store.describe(MANIFEST))
            except StageError:
                self.keep_damaged(MANIFEST, existing)
                if not self.store.replace(MANIFEST, raw, version):
                    continue
                found = manifest
            if found.digest != manifest.digest:
                raise StageError(
                    f"{self.location} holds features of another definition ({found.digest[:8]}, not {manifest.digest[:8]}).",
                    "Rename that folder, then run `unic-pipe extract` again.",
                )
            manifest = found
            break
        self._manifest = manifest
        return manifest

    def planes(self) -> list[Plane]:
        """Every (view, token type) that has records, loose or folded."""
        named = [name for name in self.store.folders("records") if re.fullmatch(r"view-\d+", name)]
        found = [(int(name.removeprefix("view-")), self.store.names(f"records/{name}")) for name in named]
        return [
            (v, token) for v, names in sorted(found) for token in TOKENS if {token, f"{token}.parquet"} & set(names)
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
        return {record.block: record for record in self._in_force(view, token)}

    def last_record(self, view: int, token: TokenType) -> UnitRecord | None:
        """The record in force of the last finished block, without parsing those before it."""
        return next(self._in_force(view, token, backwards=True), None)

    def _in_force(self, view: int, token: TokenType, backwards: bool = False) -> Iterator[UnitRecord]:
        documents = self._table(view, token).documents() | self.loose(view, token)
        definition = self.required_manifest().digest
        for block in sorted(documents, reverse=backwards):
            record = parse_record(documents[block], record_key(view, token, block))
            if record is not None and record.definition == definition:
                yield record

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
        keys = {record_key(view, token, block): block for block in self.loose_blocks(view, token)}
        documents = self.store.get_many(keys)
        return {keys[k]: document for k, document in documents.items() if placed(document, view, token) == keys[k]}

    def loose_blocks(self, view: int, token: TokenType, suffix: str = ".json") -> list[int]:
        """Blocks for which a loose file of this kind exists, damaged or not."""
        folder = records_folder(view, token)
        if self._listing is not None:
            names = [k.removeprefix(f"{folder}/") for k in self._listing if k.startswith(f"{folder}/")]
        else:
            names = self.store.names(folder)
        stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def statistics(self, view: int, token: TokenType, records: Mapping[int, UnitRecord]) -> dict[int, bytes]:
        """Verified statistics of these units, by block. Raises StageError: a sidecar is missing or damaged."""
        loose = self._sidecars(view, token, [b for b in self.loose_blocks(view, token, ".stats") if b in records])
        found = {block: raw for block, raw in loose.items() if fast_hash(raw) == records[block].files[-1].xxh3}
        missing = [block for block in records if block not in found]
        if missing:
            folded = get_or_none(self.store, folded_key(view, token))
            entries = read_folded(folded, view, token).entries if folded is not None else {}
            for block in missing:
                entry = entries.get(block)
                if entry is None or fast_hash(entry.statistics) != records[block].files[-1].xxh3:
                    raise StageError(
                        f"{self.store.describe(statistics_key(view, token, block))} is missing or damaged "
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
                for document in (get_or_none(self.store, key), table.document(block)):
                    if document is not None:
                        self.keep_damaged(key, document)
                self.store.delete(key)
                self.store.delete(statistics_key(view, token, block))
            # Read again: another process may have folded one of them before its record went.
            table = self._table(view, token)
            if not blocks or table.damaged or any(table.document(block) is not None for block in blocks):
                self._rewrite(view, token, frozenset(blocks))

    def set_aside(self, key: str) -> None:
        """Move a damaged file that can be derived again to `damaged/`; one that was replaced meanwhile stays."""
        version, raw = self.store.version(key), get_or_none(self.store, key)
        if raw is not None:
            self.keep_damaged(key, raw)
            self.store.replace(key, None, version)

    def keep_damaged(self, key: str, raw: bytes) -> None:
        """Copy a damaged file to `damaged/`, beside earlier ones of the same name."""
        name, copy = f"{DAMAGED}/{key}", 0
        while not self.store.create(name, raw) and get_or_none(self.store, name) != raw:
            copy += 1
            name = f"{DAMAGED}/{key}.{copy}"

    def lock(self) -> AbstractContextManager[None]:
        """One process or thread at a time among those that rewrite shared files of a local folder; a kill releases it.

        Object stores have no locks: there what is shared is only ever replaced conditionally.
        """
        return self.store.locked("records") if isinstance(self.store, LocalStore) else nullcontext()

    def _rewrite(self, view: int, token: TokenType, without: frozenset[int]) -> None:
        """The table with what is loose and without some blocks; begins again when somebody else replaced it."""
        key = folded_key(view, token)
        while True:
            version, old = self.store.version(key), get_or_none(self.store, key)
            folded = read_folded(old, view, token) if old is not None else FoldedContent({})
            if old is not None and folded.damaged:
                if self.store.version(key) != version:
                    continue
                self.keep_damaged(key, old)
            loose = self._whole_loose(view, token)
            entries = {b: e for b, e in (folded.entries | loose).items() if b not in without}
            new = folded_bytes(entries) if entries else None
            if new != old and not self.store.replace(key, new, version):
                continue
            voided = self._voided(view, token, {b: e for b, e in loose.items() if folded.entries.get(b) != e})
            if voided <= without:
                break
            without |= voided
        sidecars = [b for b in self.loose_blocks(view, token, ".stats") if b in entries]
        self._delete_equal({statistics_key(view, token, b): entries[b].statistics for b in sidecars})
        records = [b for b in self.loose_blocks(view, token) if b in entries]
        self._delete_equal({record_key(view, token, b): entries[b].document for b in records})

    def _voided(self, view: int, token: TokenType, folded: Mapping[int, Entry]) -> set[int]:
        """Which of the records that were just folded another process took out of force while they were being folded:
        they are no longer loose, and stand in `damaged/`. Cannot happen under a lock."""
        gone = folded.keys() - set(self.loose_blocks(view, token))
        aside = self.store.get_many(f"{DAMAGED}/{record_key(view, token, block)}" for block in sorted(gone))
        return {b for b in gone if aside.get(f"{DAMAGED}/{record_key(view, token, b)}") == folded[b].document}

    def _delete_equal(self, contents: Mapping[str, bytes]) -> None:
        """Delete those keys that still hold these bytes."""
        found = self.store.get_many(contents)
        self.store.delete_many([key for key, raw in found.items() if raw == contents[key]])

    def _whole_loose(self, view: int, token: TokenType) -> dict[int, Entry]:
        definition = self.required_manifest().digest
        bodies = {block: (document, json.loads(document)) for block, document in self.loose(view, token).items()}
        bodies = {block: pair for block, pair in bodies.items() if pair[1]["definition"] == definition}
        sidecars = self._sidecars(view, token, list(bodies))
        return {
            block: Entry(document, sidecars[block])
            for block, (document, body) in bodies.items()
            if block in sidecars and fast_hash(sidecars[block]) == body["files"][-1]["xxh3"]
        }

    def _sidecars(self, view: int, token: TokenType, blocks: Sequence[int]) -> dict[int, bytes]:
        """Loose statistics of these blocks, as far as they are there."""
        keys = {statistics_key(view, token, block): block for block in blocks}
        return {keys[key]: raw for key, raw in self.store.get_many(keys).items()}

    def _loose_document(self, view: int, token: TokenType, block: int) -> bytes | None:
        document = get_or_none(self.store, record_key(view, token, block))
        return document if document is not None and placed(document, view, token) == block else None

    def _table(self, view: int, token: TokenType) -> FoldedTable:
        key = folded_key(view, token)
        size = None
        if self._listing is None:
            version = self.store.version(key)
        else:
            size, version = self._listing.get(key) or (None, None)
        cached = self._tables.get((view, token))
        if cached is None or cached[0] != version:
            table = FoldedTable(self.store if version is not None else None, key, view, token, size)
            # Read in pieces: one that was replaced meanwhile looks damaged.
            while table.damaged and (now := self.store.version(key)) != version:
                version, table = now, FoldedTable(self.store if now is not None else None, key, view, token)
            cached = version, table
            self._tables[view, token] = cached
        return cached[1]


def folder_of(features: Store, digest: str) -> tuple[FeatureManifest, FeatureFolder] | None:
    """The folder of features of a definition, by its digest, and its manifest; None where there is none.
    Raises StageError: a manifest is damaged."""
    for name in [n for n in features.folders() if n.endswith(f"-{short(digest)}")]:
        folder = FeatureFolder(features.child(name))
        manifest = folder.manifest
        if manifest is not None and manifest.digest == digest:
            return manifest, folder
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
