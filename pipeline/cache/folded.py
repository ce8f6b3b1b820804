"""The table into which records are folded: one Parquet file per (view, token type), its rows sorted by block.

`document` holds each record exactly as its loose file did, sealed by its own checksum, and `statistics` its sidecar,
whose hash the record states. Both are stored uncompressed. If the file is damaged they are found again by their first
bytes and believed one by one, so that a flipped bit costs one unit and not the whole table.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from unic_pipe.pipeline.cache.moments import MOMENTS_MAGIC
from unic_pipe.pipeline.cache.tables import DamagedTable, read_core, read_sealed, sealed_parquet
from unic_pipe.pipeline.storage import Store, fast_hash, get_or_none
from unic_pipe.schemas.base import seal_holds
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import UnitRecord

PAYLOAD = "statistics"
_CORE = ("view", "token", "block", "definition", "rows", "count", "bad", "batch", "document")
_SCHEMA = pa.schema(
    [
        ("view", pa.int32()),
        ("token", pa.string()),
        ("block", pa.int32()),
        ("definition", pa.string()),
        ("rows", pa.string()),
        ("count", pa.int32()),
        ("bad", pa.int32()),
        ("batch", pa.int32()),
        ("document", pa.binary()),
        (PAYLOAD, pa.large_binary()),
    ]
)
_DOCUMENT_START, _DOCUMENT_END = b'{\n "schema": "unit/', b'"\n}\n'


@dataclass(frozen=True)
class Entry:
    """A record as it stands on disk, and the bytes of its statistics."""

    document: bytes
    statistics: bytes


def folded_bytes(entries: Mapping[int, Entry]) -> bytes:
    """Deterministic bytes of the table of these units."""
    rows = []
    for block in sorted(entries):
        body = json.loads(entries[block].document)
        row = {name: body[name] for name in ("view", "token", "block", "definition", "rows", "count", "batch")}
        rows.append(
            row | {"bad": len(body["bad"]), "document": entries[block].document, PAYLOAD: entries[block].statistics}
        )
    return sealed_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA), PAYLOAD)


class FoldedTable:
    """The records of a folded table, without their statistics; empty if there is none (or no store to look in)."""

    def __init__(self, store: Store | None, key: str, view: int, token: TokenType, size: int | None = None) -> None:
        self.damaged = False
        self._salvaged: dict[int, bytes] = {}
        self._core: pa.Table | None = None
        self._position: dict[int, int] | None = None
        if store is None:
            return
        try:
            core = read_core(store, key, list(_CORE), size)
            self._core = core if _is_of(core, view, token) else None
            self.damaged = self._core is None
        except FileNotFoundError:
            return
        except DamagedTable:
            self.damaged = True
        if self.damaged:
            self._salvaged, _ = salvage_documents(get_or_none(store, key) or b"", view, token)

    def planning(self) -> Iterator[tuple[int, str, str]]:
        """(block, definition digest, rows digest) of every record."""
        if self._core is not None:
            columns = (self._core.column(name).to_pylist() for name in ("block", "definition", "rows"))
            yield from zip(*columns, strict=True)
        for block, document in self._salvaged.items():
            body = json.loads(document)
            yield block, body["definition"], body["rows"]

    def batches(self) -> set[int]:
        """Batch sizes with which the units were made."""
        found = set(self._core.column("batch").to_pylist()) if self._core is not None else set()
        return found | {json.loads(document)["batch"] for document in self._salvaged.values()}

    def documents(self) -> dict[int, bytes]:
        """Every record's bytes by block."""
        if self._core is None:
            return dict(self._salvaged)
        return dict(zip(self._core.column("block").to_pylist(), self._core.column("document").to_pylist(), strict=True))

    def document(self, block: int) -> bytes | None:
        """One record's bytes."""
        if self._core is None:
            return self._salvaged.get(block)
        if self._position is None:
            self._position = {b: i for i, b in enumerate(self._core.column("block").to_pylist())}
        row = self._position.get(block)
        found: bytes | None = None if row is None else self._core.column("document")[row].as_py()
        return found


@dataclass(frozen=True)
class FoldedContent:
    """Everything in a folded file: whole units, and the blocks of which only a part could be believed."""

    entries: dict[int, Entry]
    lost: tuple[int, ...] = ()
    """Blocks that the table had and that cannot be restored, as far as it can be told."""
    damaged: bool = False


def read_folded(raw: bytes, view: int, token: TokenType) -> FoldedContent:
    """All units of a folded file's bytes, each checked by its own hashes."""
    try:
        table = read_sealed(raw)
        damaged = not _is_of(table, view, token)
    except DamagedTable:
        damaged = True
    if not damaged:
        columns = (table.column(name).to_pylist() for name in ("block", "document", PAYLOAD))
        return FoldedContent({b: Entry(d, s) for b, d, s in zip(*columns, strict=True)})
    documents, lost = salvage_documents(raw, view, token)
    statistics = dict(_salvage_statistics(raw, documents))
    entries = {b: Entry(d, statistics[b]) for b, d in documents.items() if b in statistics}
    return FoldedContent(entries, tuple(sorted(lost | (documents.keys() - entries.keys()))), damaged=True)


def salvage_documents(raw: bytes, view: int, token: TokenType) -> tuple[dict[int, bytes], set[int]]:
    """Records of this (view, token type) that stand undamaged in the bytes, and the blocks of damaged ones.

    A record names its block twice; what stands between two good records and names a block between theirs was one.
    """
    found: dict[int, bytes] = {}
    lost: set[int] = set()
    name = re.compile(
        rb'"view": %d,\n "token": "%b",\n "block": (\d+)|records/view-%03d/%b/(\d+)\.stats'
        % (view, token.encode(), view, token.encode())
    )
    before, rest = -1, 0
    start = raw.find(_DOCUMENT_START)
    while start >= 0:
        end = raw.find(_DOCUMENT_END, start)
        document = raw[start : end + len(_DOCUMENT_END)]
        block = placed(document, view, token) if end >= 0 else None
        if block is not None:
            found[block] = document
            lost |= {n for n in _named(name, raw[rest:start]) if before < n < block}
            before, rest = block, start + len(document)
        start = raw.find(_DOCUMENT_START, start + 1)
    lost |= {n for n in _named(name, raw[rest:]) if before < n}
    return found, lost - found.keys()


def _named(name: re.Pattern[bytes], raw: bytes) -> Iterator[int]:
    return (int(match[1] or match[2]) for match in name.finditer(raw))


def placed(document: bytes, view: int, token: TokenType) -> int | None:
    """The block of an undamaged record of this (view, token type); None for anything else."""
    if not seal_holds(document):
        return None
    try:
        body: dict[str, Any] = json.loads(document)
        block = body["block"]
    except (ValueError, KeyError):
        return None
    return int(block) if (body.get("view"), body.get("token")) == (view, token) else None


def parse_record(document: bytes, source: str) -> UnitRecord | None:
    """The record, or None if it is damaged or written by something newer."""
    try:
        return UnitRecord.from_bytes(document, source)
    except UserError:
        return None


def _salvage_statistics(raw: bytes, documents: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
    wanted: dict[tuple[int, str], list[int]] = {}
    for block, document in documents.items():
        entry = json.loads(document)["files"][-1]
        wanted.setdefault((entry["size"], entry["xxh3"]), []).append(block)
    sizes = {size for size, _ in wanted}
    start = raw.find(MOMENTS_MAGIC)
    while start >= 0:
        for size in sizes:
            statistics = raw[start : start + size]
            for block in wanted.get((size, fast_hash(statistics)), []):
                yield block, statistics
        start = raw.find(MOMENTS_MAGIC, start + 1)


def _is_of(table: pa.Table, view: int, token: TokenType) -> bool:
    return set(table.column("view").to_pylist()) <= {view} and set(table.column("token").to_pylist()) <= {token}
