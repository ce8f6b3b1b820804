"""Indexing: a source becomes `samples/<name>-<8 digits>/`, or grows by a segment; unchanged data cost a listing.

Segment files are written first, the manifest after them, the pointer last: a killed indexing leaves either the old index or
the new one. What a segment holds never changes, so rows keep their numbers and keys.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unic_pipe.pipeline.process.progress import Reporter, SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.block_digests import write_block_digests
from unic_pipe.pipeline.samples.continuing import compared, described, existing, gained
from unic_pipe.pipeline.samples.dataset import FOLDER, Dataset, SegmentTable, find_dataset, read_manifest
from unic_pipe.pipeline.samples.files import NAMES
from unic_pipe.pipeline.samples.folders import with_deleted
from unic_pipe.pipeline.samples.freshness import Changes, labels_changed, recorded_counts
from unic_pipe.pipeline.samples.keys import class_sorted, named, random_order, unique_keys
from unic_pipe.pipeline.samples.labels import label_source
from unic_pipe.pipeline.samples.left_out import LeftOut, shown
from unic_pipe.pipeline.samples.relabel import SourceLabels, relabelled, source_labels
from unic_pipe.pipeline.samples.remarks import say_left, say_remarks
from unic_pipe.pipeline.samples.scan import Piece, entries_of, scan_pieces
from unic_pipe.pipeline.samples.segments import make_segment
from unic_pipe.pipeline.samples.shards import left_out
from unic_pipe.pipeline.samples.sources import data_roots, find_source
from unic_pipe.pipeline.samples.table import labels_of, one_array
from unic_pipe.pipeline.samples.undertaking import Work
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import DatasetManifest, Segment


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
    compare: bool = False,
) -> Dataset:
    """Index dataset `name`, or return the existing index when its data are unchanged; added data become a new segment.

    The index is written to `place`, by default `samples/` of the working folder; `options` are those of object stores
    that hold samples (`storage.open_store`). `compare`: tars of the same size that were written at another time are read,
    for their labels.

    Raises:
        UserError: data that cannot be found or used, that changed or went away since they were indexed, another number of
            rows than `config.rows`.
        IndexingStopped: `stop` was requested before the end; the next call goes on.
    """
    roots = data_roots(workdir, config, samples, options)
    place = LocalStore(workdir / FOLDER) if place is None else place
    current = find_dataset(place, name)
    known = None if current is None or current.size("manifest.json") is None else read_manifest(current).layout
    source = find_source(name, config, roots, known)
    work = Work(
        place=place,
        scratch=LocalStore(workdir / "runs" / "index" / name),
        name=name,
        config=config,
        block_rows=samples.block_rows,
        roots=roots,
        source=source,
        label_source=label_source(config, source, roots),
        progress=progress or SilentReporter(),
        stop=stop,
        decoding=samples.decoding,
        rule=NAMES.model_copy(update={"image": config.image}),
    )
    found = existing(work)
    dataset = _build(work, work.pieces(), None, ()) if found is None else _continue(work, *found, compare)
    shutil.rmtree(work.scratch.root, ignore_errors=True)
    return dataset


def _continue(work: Work, old: Dataset, changes: Changes, compare: bool) -> Dataset:
    """Add what is new to an index, void what is gone, and take labels that changed."""
    old, other_labels = compared(work, old, (*changes.rewritten, *(changes.touched if compare else ())))
    same = not other_labels and labels_changed(old, work.label_source, work.source, work.config, work.roots) is None
    work = replace(
        work,
        label_source=old.manifest.label_source if same else work.label_source,
        rule=old.manifest.names,
        recorded=frozenset(recorded_counts(old.manifest)),
    )
    new, gone = gained(work, old, changes)
    if gone:
        work.progress.say(
            f"dataset {work.name}: {len(gone):,} of {old.manifest.rows:,} indexed images were deleted or renamed (first: "
            f"{shown(gone[0])}); their rows are void."
        )
    if not same or new:
        return _build(work, new, old, gone, relabel=not same)
    _expect_rows(work, old.manifest.rows)
    point(work.place, work.name, old.store.name)
    say_left(work, work.left_in_folders())
    return described(old, source=work.source.text, decoding=work.decoding, gone=gone)


def _relabelled(
    work: Work, old: Dataset, found: SourceLabels
) -> tuple[list[Segment], dict[int, bytes | Path], list[pa.Table]]:
    """The recorded segments with the labels that the source gives now, their files, and their rows."""
    scanned = None
    if work.source.layout == "tars":
        pieces = work.tar_pieces([entry.path for s in old.manifest.segments for entry in s.shards])
        pieces_rows = scan_pieces(pieces, work.scratch, work.progress, f"labels of {work.name}", work.stop)
        scanned = pa.concat_tables([rows.table() for rows in pieces_rows])
    parts = relabelled(old, found, scanned)
    files: dict[int, bytes | Path] = {number: data for number, (_, data, _) in enumerate(parts)}
    return [segment for segment, _, _ in parts], files, [rows for _, _, rows in parts]


def _without_label(shards: pa.Array, labels_N: NDArray[np.int32], gone: tuple[str, ...]) -> int:
    """How many rows have no label; those whose image is gone need none."""
    missing_N = labels_N < 0
    if gone:
        missing_N &= ~np.isin(shards.to_pylist(), gone)
    return int(np.count_nonzero(missing_N))


def _build(
    work: Work, pieces: Sequence[Piece], old: Dataset | None, gone: tuple[str, ...], relabel: bool = False
) -> Dataset:
    """Scan pieces into a segment after those of an old index, if any, and write the index."""
    folders = [with_deleted(folder, gone) for folder in work.folders]
    found = source_labels(work.name, work.config, work.source, folders, work.roots, work.named)
    left = work.left_in_folders()
    for remark in found.remarks:
        work.progress.say(remark)
    segments: list[Segment] = [] if old is None else list(old.manifest.segments)
    files: dict[int, bytes | Path] = {}
    unlabelled = 0
    if old is not None and relabel:
        segments, files, tables = _relabelled(work, old, found)
        unlabelled = sum(_without_label(rows["shard"], labels_of(one_array(rows["label"])), gone) for rows in tables)
    elif old is not None:
        unlabelled = sum(_without_label(table.shards, table.labels, gone) for table in old.segments)
    permuted, prefixed = (old.manifest.permuted, old.manifest.prefixed) if old is not None else (False, False)
    if pieces:
        new = _new_segment(work, pieces, found, segments, [] if old is None else old.segments, prefixed)
        left.merge(new.left)
        prefixed, permuted = new.prefixed, permuted or new.permuted
        files[len(segments)] = new.file
        segments.append(new.segment)
        unlabelled += new.unlabelled
    _expect_rows(work, sum(s.rows for s in segments))
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
        names=work.rule,
        decoding=work.decoding,
        gone=gone,
    )
    dataset = write_index(work, manifest, files)
    say_remarks(work, dataset, permuted and old is None, unlabelled)
    say_left(work, left)
    return dataset


class _NewSegment(NamedTuple):
    segment: Segment
    file: Path
    left: LeftOut
    prefixed: bool
    permuted: bool
    unlabelled: int


def _new_segment(
    work: Work, pieces: Sequence[Piece], found: SourceLabels, before: Sequence[Segment], earlier: Sequence[SegmentTable],
    prefixed: bool,
) -> _NewSegment:  # fmt: skip
    """Scan pieces into a segment and its file. Of the rows of millions of images only numbers are ever held unpacked."""
    scanned = scan_pieces(pieces, work.scratch, work.progress, f"indexing {work.name}", work.stop)
    left = left_out(scanned)
    names, now_prefixed = unique_keys(scanned, work.source.layout, [table.keys for table in earlier], prefixed)

    def rows() -> Iterator[pa.Table]:
        return (found.apply(rows, one_array(rows["label"]), work.name) for rows in named(scanned, names))

    labels_N = np.concatenate([labels_of(one_array(table["label"])) for table in rows()])
    permuted = work.source.layout in ("class-folders", "listed") or class_sorted(labels_N)
    tables = random_order(rows, len(labels_N)) if permuted else rows()
    file = LocalStore(work.scratch.root.parents[1]).temporary()
    segment = make_segment(tables, before, work.block_rows, entries_of(pieces, scanned), file)
    unlabelled = int(np.count_nonzero(labels_N < 0))
    return _NewSegment(segment, file, left, prefixed or now_prefixed, permuted, unlabelled)


def _expect_rows(work: Work, rows: int) -> None:
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


def write_index(work: Work, manifest: DatasetManifest, files: Mapping[int, bytes | Path]) -> Dataset:
    """Write segment files (by number; bytes, or where they lie), then the manifest, then the pointer.
    Raises UserError: there is such an index with other block rows."""
    folder = f"{work.name}-{short(manifest.digest)}"
    store = work.place.child(folder)
    if store.size("manifest.json") is not None:
        work.expect_same_settings(read_manifest(store))
    segments = list(manifest.segments)
    for number, content in files.items():
        name, data = segments[number].file, content.read_bytes() if isinstance(content, Path) else content
        if store.size("manifest.json") is not None and store.size(name) is not None and store.get(name) != data:
            # The same rows with other labels or in another place: readers of the old manifest keep their file.
            name = f"segment-{number:03d}-{segments[number].file_digest[:8]}.parquet"
            segments[number] = segments[number].model_copy(update={"file": name})
        store.put(name, data)
        write_block_digests(store, segments[number], content, manifest.block_rows)
        del data  # hundreds of megabytes, maybe
        if isinstance(content, Path):
            content.unlink()
    manifest = manifest.model_copy(update={"segments": tuple(segments)})
    store.put("manifest.json", manifest.to_bytes())
    point(work.place, work.name, folder)
    if isinstance(store, LocalStore):
        store.sweep()
    return Dataset(store, work.roots, manifest)
