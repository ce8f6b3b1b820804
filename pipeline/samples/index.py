"""Indexing: a source becomes `samples/<name>-<8 digits>/`, or grows by a segment; unchanged data cost a listing.

Segment files are written first, the manifest after them, the pointer last: a killed indexing leaves either the old index or
the new one. What a segment holds never changes, so rows keep their numbers and keys.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unic_pipe.pipeline.process.progress import Reporter, SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.dataset import FOLDER, Dataset, find_dataset, open_dataset, read_manifest
from unic_pipe.pipeline.samples.folders import ImageFolder, list_folders
from unic_pipe.pipeline.samples.freshness import Changes, compare, labels_changed
from unic_pipe.pipeline.samples.keys import class_sorted, random_order, unique_keys
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS, label_source
from unic_pipe.pipeline.samples.places import Root, where
from unic_pipe.pipeline.samples.relabel import SourceLabels, relabelled, source_labels
from unic_pipe.pipeline.samples.scan import Piece, TarPiece, entries_of, folder_pieces, scan_pieces
from unic_pipe.pipeline.samples.sources import Source, data_roots, find_source
from unic_pipe.pipeline.samples.table import hashes_of, labels_digest, labels_of, one_array, rows_digest, to_parquet
from unic_pipe.pipeline.storage import LocalStore, Store, fast_hash
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import INDEX_COLUMNS, DatasetManifest, Segment

_NEW_NAME = "Index the changed data as a new dataset: give it another name under samples.datasets."


def index_dataset(
    workdir: Path,
    name: str,
    config: DatasetConfig,
    samples: SamplesConfig,
    progress: Reporter | None = None,
    stop: Stop | None = None,
    *,
    place: Store | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Index dataset `name`, or return the existing index when its data are unchanged; added data become a new segment.

    The index is written to `place`, by default `samples/` of the working folder; `options` are those of object stores
    that hold samples (`storage.open_store`).

    Raises:
        UserError: data that cannot be found or used, that changed or went away since they were indexed, another number of
            rows than `config.rows`.
        IndexingStopped: `stop` was requested before the end; the next call goes on.
    """
    roots = data_roots(workdir, config, samples, options)
    source = find_source(name, config, roots)
    labels = label_source(config, source, roots)
    place = LocalStore(workdir / FOLDER) if place is None else place
    scratch = LocalStore(workdir / "runs" / "index" / name)
    reporter = progress or SilentReporter()
    work = _Work(place, scratch, name, config, samples.block_rows, roots, source, labels, reporter, stop)
    found = _existing(work)
    if found is None:
        return _build(work, _all_pieces(work), None)
    old, changes = found
    old = _compared(work, old, changes.rewritten)
    same = labels_changed(old, labels, source, config, roots) is None
    work = replace(work, label_source=old.manifest.label_source) if same else work
    new = _new_pieces(work, old, changes)
    if same and not new:
        _expect_rows(work, old.manifest.rows)
        point(place, name, old.store.name)
        shutil.rmtree(scratch.root, ignore_errors=True)
        return _described(old, source=source.text)
    return _build(work, new, old, relabel=not same)


@dataclass(frozen=True)
class _Work:
    place: Store
    scratch: LocalStore
    name: str
    config: DatasetConfig
    block_rows: int
    roots: tuple[Root, ...]
    source: Source
    label_source: str
    progress: Reporter
    stop: Stop | None

    @property
    def named(self) -> bool:
        """Whether class folders are numbered by place and known by name."""
        return self.label_source.partition("-")[0] == OLD_FOLDERS

    def folders(self) -> list[ImageFolder]:
        """The source's folders; none for tars."""
        return [] if self.source.layout == "tars" else list_folders(self.source, by_place=self.named)


def _existing(work: _Work) -> tuple[Dataset, Changes] | None:
    """The index to continue: the one in force if its data are there, else an earlier one of that name, else None."""
    current = find_dataset(work.place, work.name)
    pattern = re.compile(re.escape(work.name) + "-[0-9a-f]{8}")
    earlier = [work.place.child(folder) for folder in work.place.folders() if pattern.fullmatch(folder)]
    for store in dict.fromkeys([*([current] if current else []), *earlier]):
        if store.size("manifest.json") is None:
            continue
        old = open_dataset(store, work.roots)
        if old.manifest.layout != work.source.layout:
            continue
        if work.source.layout == "listed" and old.manifest.label_source != work.label_source:
            continue  # other lists are other data
        changes = compare(old.manifest, work.source, trust_mtimes=False)
        if not changes.missing and not changes.resized:
            if old.block_rows != work.block_rows:
                raise _other_block_rows(work, old.block_rows)
            return old, changes
        if store == current and old.manifest.source == work.source.text:
            _refuse(work, old, changes)
    return None


def _compared(work: _Work, old: Dataset, rewritten: Sequence[str]) -> Dataset:
    """Objects that were written again are read again: the same data in another copy are as good, other data are not.

    Raises:
        UserError: other data.
    """
    if not rewritten:
        return old
    pieces = _tar_pieces(work, rewritten)
    tables = scan_pieces(pieces, work.scratch, work.progress, f"comparing {work.name}", work.stop)
    known = {
        (shard, offset): content.tobytes()
        for table in old.segments
        for shard, offset, content in zip(table.shards.to_pylist(), table.offsets.tolist(), table.hashes, strict=True)
    }
    for shard, table in zip(rewritten, tables, strict=True):
        found = {(shard, row["offset"]): row["xxh3"] for row in table.select(["offset", "xxh3"]).to_pylist()}
        if found != {place: content for place, content in known.items() if place[0] == shard}:
            raise UserError(
                f"dataset {work.name}: {shard} changed since it was indexed.", f"Restore it. Or: {_NEW_NAME}"
            )
    now = {entry.path: entry for entry in entries_of(pieces, tables)}
    segments = tuple(
        segment.model_copy(update={"shards": tuple(now.get(entry.path, entry) for entry in segment.shards)})
        for segment in old.manifest.segments
    )
    return _described(old, segments=segments)


def _described(old: Dataset, **fields: Any) -> Dataset:
    """An index whose manifest says something else of the same data."""
    manifest = old.manifest.model_copy(update=fields)
    if manifest == old.manifest:
        return old
    old.store.put("manifest.json", manifest.to_bytes())
    return Dataset(old.store, old.roots, manifest)


def _refuse(work: _Work, old: Dataset, changes: Changes) -> None:
    if changes.resized:
        raise UserError(
            f"dataset {work.name}: {len(changes.resized)} shards changed size since they were indexed "
            f"(first: {changes.resized[0]}).",
            f"Restore them. Or: {_NEW_NAME}",
        )
    total = sum(len(segment.shards) for segment in old.manifest.segments)
    raise UserError(
        f"dataset {work.name}: {len(changes.missing)} of {total} indexed shards are not there "
        f"(first: {changes.missing[0]}; looked in {', '.join(map(where, work.roots))}).",
        f"Has the data moved? Set `samples.roots`. Or: {_NEW_NAME}",
    )


def _other_block_rows(work: _Work, indexed: int) -> UserError:
    return UserError(
        f"dataset {work.name}: samples.block_rows is {work.block_rows}; its index has {indexed}.",
        f"Set it back to {indexed}, or give the dataset another name under samples.datasets.",
    )


def _all_pieces(work: _Work) -> list[Piece]:
    if work.source.layout == "tars":
        return _tar_pieces(work, list(work.source.tars))
    return folder_pieces(work.folders())


def _tar_pieces(work: _Work, shards: Sequence[str]) -> list[Piece]:
    return [TarPiece(shard, work.source.tars[shard], work.config.label_field) for shard in shards]


def _new_pieces(work: _Work, old: Dataset, changes: Changes) -> list[Piece]:
    """What the source gained since `old`."""
    if work.source.layout == "tars":
        return _tar_pieces(work, changes.added)
    if not changes.added:
        return []
    folders = work.folders()
    names = tuple(folder.folder.name for folder in folders)
    known_classes = old.manifest.classes or ()
    if work.named and old.manifest.label_source == OLD_FOLDERS and known_classes != names[: len(known_classes)]:
        first = next(name for name in names if name not in known_classes)
        raise UserError(
            f"dataset {work.name}: the new class folder {first} would change the numbers of classes after it.",
            f"Name it so that it sorts last. Or: {_NEW_NAME}",
        )
    known = {path for table in old.segments for path in table.shards.to_pylist()}
    gained = [_without(folder, known) for folder in folders if folder.path in set(changes.added)]
    if sum(len(folder.names) for folder in gained) != changes.new:
        raise UserError(
            f"dataset {work.name}: indexed images were removed or renamed.", f"Restore them. Or: {_NEW_NAME}"
        )
    return folder_pieces(gained)


def _without(folder: ImageFolder, known: set[str]) -> ImageFolder:
    names = tuple(name for name in folder.names if folder.shard(name) not in known)
    return ImageFolder(folder.path, folder.folder, folder.key, folder.label, names)


def _relabelled(work: _Work, old: Dataset, found: SourceLabels) -> tuple[list[Segment], dict[int, bytes], int]:
    """The recorded segments with the labels that the source gives now, their files, and rows without a label."""
    scanned = None
    if work.source.layout == "tars":
        pieces = _tar_pieces(work, [entry.path for s in old.manifest.segments for entry in s.shards])
        tables = scan_pieces(pieces, work.scratch, work.progress, f"labels of {work.name}", work.stop)
        scanned = pa.concat_tables(tables)
    parts = relabelled(old, found, scanned)
    files = {number: data for number, (_, data, _) in enumerate(parts)}
    return [segment for segment, _, _ in parts], files, sum(nulls for _, _, nulls in parts)


def _build(work: _Work, pieces: Sequence[Piece], old: Dataset | None, relabel: bool = False) -> Dataset:
    """Scan pieces into a segment after those of an old index, if any, and write the index."""
    found = source_labels(work.name, work.config, work.source, work.folders(), work.roots, work.named)
    for remark in found.remarks:
        work.progress.say(remark)
    segments: list[Segment] = [] if old is None else list(old.manifest.segments)
    files: dict[int, bytes] = {}
    unlabelled = 0
    if old is not None and relabel:
        segments, files, unlabelled = _relabelled(work, old, found)
    elif old is not None:
        unlabelled = int(np.count_nonzero(old.labels() < 0))
    permuted, prefixed = (old.manifest.permuted, old.manifest.prefixed) if old is not None else (False, False)
    if pieces:
        tables = scan_pieces(pieces, work.scratch, work.progress, f"indexing {work.name}", work.stop)
        earlier = [] if old is None else [table.keys for table in old.segments]
        table, now_prefixed = unique_keys(pa.concat_tables(tables), work.source.layout, earlier, prefixed)
        table = found.apply(table, one_array(table["label"]), work.name)
        if work.source.layout in ("class-folders", "listed") or class_sorted(table):
            table, permuted = random_order(table), True
        prefixed = prefixed or now_prefixed
        segment, files[len(segments)] = _segment(table, segments, work.block_rows, entries_of(pieces, tables))
        segments.append(segment)
        unlabelled += table["label"].null_count
    rows = sum(s.rows for s in segments)
    _expect_rows(work, rows)
    manifest = DatasetManifest(
        name=work.name,
        source=work.source.text,
        layout=work.source.layout,
        block_rows=work.block_rows,
        classes=found.classes,
        labelled=unlabelled == 0,
        permuted=permuted,
        prefixed=prefixed,
        label_source=work.label_source,
        segments=tuple(segments),
    )
    dataset = _write(work, manifest, files)
    _remark(work, dataset, permuted and old is None, unlabelled)
    shutil.rmtree(work.scratch.root, ignore_errors=True)
    return dataset


def _segment(
    table: pa.Table, before: Sequence[Segment], block_rows: int, shards: tuple[object, ...]
) -> tuple[Segment, bytes]:
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
        shards=shards,  # type: ignore[arg-type]
    )
    return segment, data


def _write(work: _Work, manifest: DatasetManifest, files: dict[int, bytes]) -> Dataset:
    folder = f"{work.name}-{short(manifest.digest)}"
    store = work.place.child(folder)
    if store.size("manifest.json") is not None and read_manifest(store).block_rows != work.block_rows:
        raise _other_block_rows(work, read_manifest(store).block_rows)
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


def _expect_rows(work: _Work, rows: int) -> None:
    if not rows:
        raise UserError(
            f"dataset {work.name}: no image in {work.config.source} is a file (links lead nowhere, or it is something else).",
            f"Set samples.datasets.{work.name}.source to the folder that holds them.",
        )
    if work.config.rows is not None and rows != work.config.rows:
        raise UserError(
            f"dataset {work.name}: {rows:,} rows, expected {work.config.rows:,}: are train and val swapped?",
            f"Check samples.datasets.{work.name}: `source` ({work.config.source}) and `rows`.",
        )


def _remark(work: _Work, dataset: Dataset, permuted: bool, unlabelled: int) -> None:
    say, name, rows = work.progress.say, work.name, dataset.manifest.rows
    if permuted:
        say(
            f"dataset {name}: sorted by class or by name; its rows are put in a fixed random order, so that the first "
            "blocks are a random sample."
        )
    if 0 < unlabelled < rows:
        say(f"dataset {name}: {unlabelled:,} of {rows:,} rows have no label.")
    if work.label_source.startswith(f"{OLD_FOLDERS}:one"):
        say(f"dataset {name}: a single folder is no class, so its images have no labels.")
    if dataset.manifest.classes is not None or unlabelled == rows:
        return
    numbers = np.unique(dataset.labels())
    first, last, shift = int(numbers[numbers >= 0][0]), int(numbers[-1]), work.config.first_class
    if shift:
        say(f"dataset {name}: classes count from {shift}, so {shift} is subtracted: {first:,} to {last:,}.")
    elif first == 1:
        say(
            f"dataset {name}: class numbers {first:,} to {last:,} are kept as they are. If they count from 1 where other "
            f"datasets count from 0: samples.datasets.{name}.first_class: 1"
        )
