"""What changed on disk since a dataset was indexed: judged by names and sizes, without reading the data.

Modification times decide nothing (copied data stay the same data; every read is checked against its hash). They spare the
listing of folders that have the recorded one; of tars that have another one, the
command `index` reads the labels again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unic_pipe.pipeline.samples.dataset import Dataset, open_dataset
from unic_pipe.pipeline.samples.files import class_folders, list_images
from unic_pipe.pipeline.samples.folders import list_folders
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS, find_labels, label_source, read_labels
from unic_pipe.pipeline.samples.places import Root, stamp
from unic_pipe.pipeline.samples.sources import Source, find_source, relative_source
from unic_pipe.pipeline.storage import Store
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.samples import DatasetManifest, Decoding
from unic_pipe.schemas.status import State

NOT_INDEXED = "not indexed"
"""Why a dataset that is there cannot be used yet."""


@dataclass(frozen=True)
class Changes:
    """Paths relative to a root: tars, or folders of images."""

    missing: tuple[str, ...]
    """Recorded, but no longer there."""
    resized: tuple[str, ...]
    """Recorded tars with another size, as `PATH (OLD → NEW bytes)`."""
    rewritten: tuple[str, ...]
    """Recorded objects of the same size with another ETag: the same data in another copy, or other data."""
    touched: tuple[str, ...]
    """Recorded tars of the same size that were written at another time: most likely a copy, perhaps with other labels."""
    added: tuple[str, ...]
    """Not recorded (folders: with images that are not)."""
    new: int
    """Number of new tars or images."""
    lost: int = 0
    """Recorded images that are no longer in folders that are there."""


def compare(old: Dataset, source: Source, trust_mtimes: bool) -> Changes:
    """Compare an index with what its source holds now. `trust_mtimes` skips folders whose mtime is the recorded one.
    Raises StageError: the index is damaged."""
    if source.layout == "tars":
        return _compare_tars(old.manifest, source)
    return _compare_folders(old, source, trust_mtimes)


def labels_changed(old: Dataset, now: str, source: Source, config: DatasetConfig, roots: Sequence[Root]) -> str | None:
    """Why an index has other labels than its source gives now (`now`: `label_source`); None if it has not.

    Indexes of earlier versions hold where they say the same: class folders are then numbered by place, and a labels file
    is read again.
    """
    recorded = old.manifest.label_source
    if recorded == now or (
        recorded == OLD_FOLDERS and now in (OLD_FOLDERS, f"{OLD_FOLDERS}:one", f"{OLD_FOLDERS}:numbers")
    ):
        return None
    if recorded.replace("file:", "list:", 1) != now:
        return "labels changed"
    (folder,) = list_folders(source, old.manifest.names)
    path = find_labels(config, roots)
    assert path is not None
    found = read_labels(path, folder.folder, folder.names)
    by_shard = {
        folder.shard(n): -1 if label is None else label for n, label in zip(folder.names, found.numbers, strict=True)
    }
    same = found.classes == old.manifest.classes and all(
        by_shard.get(shard) == label
        for table in old.segments
        for shard, label in zip(table.shards.to_pylist(), table.labels.tolist(), strict=True)
    )
    return (
        None if same else f"{path.name} is read differently now: columns are checked, numbers are never shifted unasked"
    )


def recorded_counts(manifest: DatasetManifest) -> dict[str, tuple[int, int]]:
    """Images that should be there and last recorded mtime of each folder, over all segments."""
    counts: dict[str, tuple[int, int]] = {}
    for segment in manifest.segments:
        for entry in segment.shards:
            counts[entry.path] = (counts.get(entry.path, (0, 0))[0] + (entry.files or 0), entry.mtime_ns)
    for path in manifest.gone:
        folder = next(above for above in map(str, PurePosixPath(path).parents) if above in counts)
        counts[folder] = (counts[folder][0] - 1, counts[folder][1])
    return counts


def dataset_state(
    index: Store | None,
    roots: Sequence[Root],
    config: DatasetConfig,
    block_rows: int | None = None,
    decoding: Decoding | None = None,
) -> tuple[State, str]:
    """Whether an index is that of `config`'s data, from listings and sizes alone (no hashing, no torch).

    Returns `fresh`, `partial` (data were added: "3 new tars"), `stale` or `missing`, and the reason. One that is fresh has a
    reason to be compared (`index_dataset`) where tars were written again, perhaps with other labels.
    """
    if index is None:
        return "missing", _why_missing(config, roots)
    try:
        indexed = open_dataset(index, roots)
        manifest = indexed.manifest
        source = find_source(manifest.name, config, roots, manifest.layout)
        if block_rows is not None and manifest.block_rows != block_rows:
            return "stale", f"samples.block_rows is {block_rows}, indexed with {manifest.block_rows}"
        if source.layout != manifest.layout:
            return "stale", f"the source holds {source.layout}, indexed were {manifest.layout}"
        if decoding is not None and decoding != manifest.decoding:
            return "stale", f"images are decoded differently: {_differing(manifest.decoding, decoding)}"
        if config.image != manifest.names.image:
            return "stale", f"image: {manifest.names.image or 'any'} → {config.image or 'any'}"
        why = labels_changed(indexed, label_source(config, source, roots), source, config, roots)
        if why is not None:
            return "stale", why
        changes = compare(indexed, source, trust_mtimes=True)
    except UnicPipeError as error:
        return "stale", error.message.removeprefix(f"dataset {index.name[:-9]}: ")
    unit = "tars" if source.layout == "tars" else "images"
    if changes.missing:
        if relative_source(config, roots) != manifest.source:
            return "stale", f"source changed: {manifest.source} → {source.text}"
        return "stale", f"{len(changes.missing)} indexed shards are not there (first: {changes.missing[0]})"
    if changes.resized:
        return "stale", f"changed since indexing: {changes.resized[0]}"
    if changes.rewritten:
        return "stale", f"written again since indexing (unic-pipe index compares): {changes.rewritten[0]}"
    if changes.new or changes.lost:
        counts = (_counted(changes.new, "new", unit), _counted(changes.lost, "deleted", unit))
        return "partial", f"{' and '.join(filter(None, counts))} since indexing"
    if config.rows is not None and config.rows != manifest.rows:
        return "stale", f"{manifest.rows:,} rows, expected {config.rows:,}"
    return "fresh", _why_compared(changes.touched)


def _differing(old: Decoding, new: Decoding) -> str:
    pairs = ((field, getattr(old, field), getattr(new, field)) for field in Decoding.model_fields)
    return ", ".join(f"{field} {was or 'none'} → {now or 'none'}" for field, was, now in pairs if was != now)


def _why_compared(touched: Sequence[str]) -> str:
    if not touched:
        return ""
    many = "1 tar was" if len(touched) == 1 else f"{len(touched):,} tars were"
    return f"{many} written or copied since indexing ({touched[0]}); if with other labels: unic-pipe index"


def _counted(number: int, which: str, unit: str) -> str:
    return f"{number:,} {which} {unit if number > 1 else unit[:-1]}" if number else ""


def _why_missing(config: DatasetConfig, roots: Sequence[Root]) -> str:
    """That it is not indexed; of a benchmark that is not here, what of it is missing."""
    if config.reader is not None:
        try:
            find_source("", config, roots)
        except UserError as error:
            return error.message
    return NOT_INDEXED


def _compare_tars(manifest: DatasetManifest, source: Source) -> Changes:
    recorded = {entry.path: entry for segment in manifest.segments for entry in segment.shards}
    now = {path: stamp(file) for path, file in source.tars.items()}
    there = [(entry, now[path]) for path, entry in recorded.items() if path in now]
    added = tuple(path for path in now if path not in recorded)
    return Changes(
        missing=tuple(path for path in recorded if path not in now),
        resized=tuple(
            f"{entry.path} ({entry.size:,} → {found.size:,} bytes)"
            for entry, found in there
            if found.size != entry.size
        ),
        rewritten=tuple(
            entry.path for entry, found in there if found.size == entry.size and _other_etag(entry.etag, found.etag)
        ),
        touched=tuple(
            entry.path
            for entry, found in there
            if found.size == entry.size and entry.etag is found.etag is None and found.mtime_ns != entry.mtime_ns
        ),
        added=added,
        new=len(added),
    )


def _other_etag(recorded: str | None, now: str | None) -> bool:
    """Data that were files, or are now, have no ETag to compare."""
    return recorded is not None and now is not None and recorded != now


def _compare_folders(old: Dataset, source: Source, trust_mtimes: bool) -> Changes:
    assert source.folder is not None
    if source.layout == "listed":  # its lists say what it holds, and `label_source` says whether they are the same
        present = {}
    elif source.layout == "flat-folder":
        present = {source.base: source.folder}
    else:
        names = class_folders(source.folder)
        present = {Path(source.base, name).as_posix(): source.folder / name for name in names}
    recorded = {} if source.layout == "listed" else recorded_counts(old.manifest)
    missing = [path for path in recorded if path not in present]
    changed = {
        path: folder
        for path, folder in present.items()
        if not (trust_mtimes and path in recorded and folder.stat().st_mtime_ns == recorded[path][1])
    }
    # As many images as before may be others: they are known by their names.
    known = {path for table in old.segments for path in table.shards.to_pylist()} if changed else set()
    known -= {*old.manifest.gone}
    added, new, lost = [], 0, 0
    for path, folder in changed.items():
        found, _ = list_images(folder, old.manifest.names, deep=source.layout != "flat-folder")
        there = sum((f"{path}/{name}" if path else name) in known for name in found)
        if len(found) > there:
            added.append(path)
            new += len(found) - there
        lost += recorded.get(path, (0, 0))[0] - there
    return Changes(tuple(missing), (), (), (), tuple(added), new, lost)
