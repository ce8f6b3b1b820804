"""Checking every file of a feature folder against what was recorded (R11).

Damaged units go out of force: their records move to `damaged/`, and the next extract makes exactly those units again.
Everything else can be derived: a damaged ledger, probe picture or statistics document is set aside there too, and whatever
needs it next writes it again; a damaged manifest or `zarr.json` stays, and the next extract replaces it.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from unic_pipe.pipeline.cache.calibration import bound_codec, check_calibrations
from unic_pipe.pipeline.cache.codecs import TokenCodec, how_to_read
from unic_pipe.pipeline.cache.folded import FoldedContent, parse_record, placed, read_folded
from unic_pipe.pipeline.cache.layout import (
    DAMAGED,
    LEDGER,
    LOSSES,
    MANIFEST,
    ROOT_METADATA,
    array_key,
    array_metadata,
    escape_key,
    folded_key,
    group_key,
    group_metadata,
    record_key,
    root_metadata,
    shard_key,
    stated_end_row,
    statistics_key,
)
from unic_pipe.pipeline.cache.records import FeatureFolder, Plane
from unic_pipe.pipeline.cache.tables import DamagedTable, read_sealed
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore, Store, fast_hash, get_or_none, sha256
from unic_pipe.schemas.base import digest_of, short
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError
from unic_pipe.schemas.features import FeatureManifest, FileEntry, LossDocument, StatisticsDocument, UnitRecord
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.status import Problem
from unic_pipe.schemas.views import ProbesDocument

THREADS = 8
"""Files that are hashed at a time; hashing and reading release the interpreter, and disks like several requests."""


def verify_folder(
    place: Path | Store,
    dataset: Dataset | None = None,
    read_only: bool = False,
    advance: Callable[[], object] = lambda: None,
    quick: bool = False,
) -> tuple[list[Problem], int]:
    """Check a feature folder; (problems, number of files that were checked). Never raises for damage.

    With a `dataset`, records must also be of its rows. `read_only` reports and changes nothing.
    `quick` looks at documents, and at the sizes of shards without reading them. `advance` is
    called for every file of a unit.
    """
    folder = FeatureFolder(LocalStore(place) if isinstance(place, Path) else place)
    return _Verification(folder, dataset, read_only, advance, quick).run()


class _Verification:
    """One run over one folder."""

    def __init__(
        self,
        folder: FeatureFolder,
        dataset: Dataset | None,
        read_only: bool,
        advance: Callable[[], object],
        quick: bool,
    ) -> None:
        self.folder, self.dataset, self.read_only, self.advance = folder, dataset, read_only, advance
        self.quick = quick
        self.store = folder.store
        self.sizes = folder.store.sizes() if quick else {}
        """Of all files, by one listing."""
        self.problems: list[Problem] = []
        self.seen: set[str] = set()
        """Keys that have been checked, or need no check."""
        self.void: dict[Plane, set[int]] = {}
        self.folded: dict[Plane, dict[int, str]] = {}
        """Hashes of the statistics in the folded tables."""
        self.manifest: FeatureManifest | None = None
        self.codecs: dict[TokenType, TokenCodec] = {}
        """Of the token types that can be read."""

    def run(self) -> tuple[list[Problem], int]:
        self._check_manifest()
        self._check_calibrations()
        for plane in self.folder.planes():
            self._check_units(self._plane_records(plane))
        self._check_metadata()
        self._check_statistics()
        self._check_summaries()
        self._check_probes()
        checked = len(self.seen)
        self._name_unexpected()
        if not self.read_only and self.manifest is not None:
            for (view, token), blocks in sorted(self.void.items()):
                self.folder.void(view, token, sorted(blocks))
        return sorted(self.problems, key=lambda p: (p.path, p.kind)), checked

    def _problem(self, key: str, kind: str, plane: Plane | None = None, block: int | None = None) -> None:
        view, token = plane if plane is not None else (None, None)
        teacher = self.manifest.encoder if self.manifest is not None else None
        self.problems.append(Problem(path=key, teacher=teacher, token=token, view=view, block=block, kind=kind))

    def _damaged_unit(self, key: str, kind: str, plane: Plane, block: int) -> None:
        self._problem(key, kind, plane, block)
        self.void.setdefault(plane, set()).add(block)

    def _check_manifest(self) -> None:
        self.seen.add(MANIFEST)
        try:
            self.manifest = self.folder.manifest
            if self.manifest is None:
                self._problem(MANIFEST, "missing")
        except UnicPipeError:
            self._problem(MANIFEST, "document")

    def _check_calibrations(self) -> None:
        """Documents and arrays that turn integers into features; what is damaged is made again before any unit."""
        if self.manifest is None:
            return
        keys, damage = check_calibrations(self.folder)
        self.seen |= keys
        for key, kind in damage:
            self._derivable(key, kind)
        for token in TOKENS:
            with suppress(StageError):
                self.codecs[token] = bound_codec(self.folder, token)

    def _plane_records(self, plane: Plane) -> list[UnitRecord]:
        """The intact records of a plane; damaged ones become problems."""
        key = folded_key(*plane)
        raw = get_or_none(self.store, key)
        folded = read_folded(raw, *plane) if raw is not None else FoldedContent({})
        if raw is not None:
            self.seen.add(key)
        if folded.damaged:
            for block in folded.lost:
                self._damaged_unit(key, "record", plane, block)
            if not folded.lost:
                self._problem(key, "document", plane)
            # Nothing to take out of force, but the table is to be written anew.
            self.void.setdefault(plane, set())
        self.folded[plane] = {block: fast_hash(entry.statistics) for block, entry in folded.entries.items()}
        documents = {block: entry.document for block, entry in folded.entries.items()}
        for block in self.folder.loose_blocks(*plane):
            key = record_key(*plane, block)
            self.seen.add(key)
            document = get_or_none(self.store, key)
            if document is not None and placed(document, *plane) == block:
                documents[block] = document
            else:
                self._damaged_unit(key, "record", plane, block)
        return [
            record for block, d in sorted(documents.items()) if (record := self._sound(d, plane, block)) is not None
        ]

    def _sound(self, document: bytes, plane: Plane, block: int) -> UnitRecord | None:
        """The record, if it is of this folder's definition, names its own files, and is of the dataset's rows."""
        key = record_key(*plane, block)
        record = parse_record(document, key)
        if record is None or (record.view, record.token, record.block) != (*plane, block):
            self._damaged_unit(key, "record", plane, block)
            return None
        expected = (self.manifest.digest if self.manifest else record.definition, record.rows)
        if self.dataset is not None:
            expected = expected[0], self.dataset.block_digest(block) if block < self.dataset.blocks else "no such block"
        if (record.definition, record.rows) != expected:
            self._damaged_unit(key, "record", plane, block)
            return None
        codec = self.codecs.get(plane[1])
        if codec is not None:
            files = [shard_key(plane[0], spec, block) for spec in codec.arrays]
            files += [f.path for f in record.files if f.path == escape_key(*plane, block)]
            files += [statistics_key(*plane, block)]
            if [f.path for f in record.files] != files or record.calibration != codec.calibration:
                self._damaged_unit(key, "record", plane, block)
                return None
        return record

    def _check_units(self, units: list[UnitRecord]) -> None:
        """Size and hash of every shard, and of every sidecar: loose, or folded in the sealed table."""
        files = [(unit, entry) for unit in units for entry in unit.files]
        with ThreadPoolExecutor(THREADS) as pool:
            damage = map if self.quick else pool.map
            for (unit, entry), kind in zip(files, damage(self._file_damage, (e for _, e in files)), strict=True):
                self.advance()
                plane = (unit.view, unit.token)
                folded = self.folded[plane].get(unit.block) if entry is unit.files[-1] else None
                if kind is not None and folded == entry.xxh3:
                    continue
                self.seen.add(entry.path)
                if kind is not None:
                    self._damaged_unit(entry.path, kind, plane, unit.block)

    def _file_damage(self, entry: FileEntry) -> str | None:
        if self.quick:
            size = self.sizes.get(entry.path)
            return "missing" if size is None else "size" if size != entry.size else None
        try:
            raw = get_or_none(self.store, entry.path)
        except OSError:
            return "unreadable"
        if raw is None:
            return "missing"
        if len(raw) != entry.size:
            return "size"
        return None if fast_hash(raw) == entry.xxh3 else "content"

    def _check_metadata(self) -> None:
        """Every `zarr.json` of the group, its views and their arrays, recomputed and compared byte for byte."""
        manifest = self.manifest
        if manifest is None:
            return
        recorded = self.folder.planes()
        for view, token in self._prepared_planes() | set(recorded):
            codec = self.codecs.get(token)
            if codec is None:
                continue
            end_row = self._end_of((view, token))
            self._check_bytes(ROOT_METADATA, root_metadata(manifest, how_to_read(manifest.definition)))
            self._check_bytes(group_key(view), group_metadata(view))
            for spec in codec.arrays:
                if (view, token) not in recorded and get_or_none(self.store, array_key(view, spec)) is None:
                    continue  # preparing it was cut off before there was a unit
                # How far the dataset reached is only said here; it must reach the last unit, and fit the checksum.
                stated = stated_end_row(get_or_none(self.store, array_key(view, spec)) or b"") or 0
                metadata = array_metadata(spec, max(stated, end_row), manifest.definition.block_rows)
                self._check_bytes(array_key(view, spec), metadata)

    def _prepared_planes(self) -> set[Plane]:
        found: set[Plane] = set()
        for folder in [name for name in self.store.folders() if re.fullmatch(r"view-\d+", name)]:
            view = int(folder.removeprefix("view-"))
            found |= {(view, t) for t in TOKENS if self.store.size(f"{folder}/{t}/zarr.json") is not None}
        return found

    def _check_bytes(self, key: str, expected: bytes) -> None:
        if key not in self.seen:
            self.seen.add(key)
            raw = get_or_none(self.store, key)
            if raw != expected:
                self._problem(key, "missing" if raw is None else "metadata")

    def _end_of(self, plane: Plane) -> int:
        """One past the last row of a plane's last finished unit."""
        assert self.manifest is not None
        last = self.folder.last_record(*plane)
        return 0 if last is None else last.block * self.manifest.definition.block_rows + last.count

    def _check_statistics(self) -> None:
        for key in self._keys("statistics"):
            self.seen.add(key)
            try:
                document = StatisticsDocument.from_bytes(get_or_none(self.store, key) or b"", key)
                sound = key == f"statistics/{short(digest_of(document))}.json"
            except UserError:
                sound = False
            if not sound:
                self._derivable(key, "document")

    def _check_summaries(self) -> None:
        """What is derived from all records: the ledger and the losses."""
        for key in (LEDGER, LOSSES):
            raw = get_or_none(self.store, key)
            if raw is None:
                continue
            self.seen.add(key)
            try:
                read_sealed(raw) if key == LEDGER else LossDocument.from_bytes(raw, key)
            except (DamagedTable, UserError):
                self._derivable(key, "document")

    def _check_probes(self) -> None:
        """Probe pictures by the hashes in their documents; without its document a view's pictures are not checked."""
        for key in [k for k in self._keys("probes") if re.fullmatch(r"probes/view-\d{3,}\.json", k)]:
            self.seen.add(key)
            try:
                document = ProbesDocument.from_bytes(get_or_none(self.store, key) or b"", key)
            except UserError:
                self._derivable(key, "document")
                self.seen.update(k for k in self._keys("probes") if k.startswith(key.removesuffix(".json") + "-"))
                continue
            for probe in document.probes:
                self.seen.add(probe.file)
                raw = get_or_none(self.store, probe.file)
                if raw is None or sha256(raw) != probe.png:
                    self._derivable(probe.file, "missing" if raw is None else "content")

    def _derivable(self, key: str, kind: str) -> None:
        """Name a file that whatever needs it next can make again, and set it aside."""
        self._problem(key, kind)
        if not self.read_only:
            self.folder.set_aside(key)

    def _name_unexpected(self) -> None:
        """Files that nothing here wrote. Shards without a record are work that was cut off: the next extract has them."""
        unfinished = re.compile(
            r"view-\d{3,}/\w+/(zarr\.json|c(/\d+)+)|view-\d{3,}/zarr\.json|zarr\.json|calibration/\w+-[0-9a-f]{8}/.+"
        )
        sidecar = re.compile(r"records/view-\d{3,}/(cls|patch)/\d+\.stats")
        for key in self.sizes if self.quick else self._keys(""):
            known = (
                key in self.seen or key.startswith(f"{DAMAGED}/") or unfinished.fullmatch(key) or sidecar.fullmatch(key)
            )
            if not known:
                self._problem(key, "unexpected")

    def _keys(self, prefix: str) -> list[str]:
        return list(self.store.keys(prefix))
