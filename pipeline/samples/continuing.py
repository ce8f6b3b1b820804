"""Going on from an index that is there: whether its data still are, and what its source gained and lost."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unic_pipe.pipeline.samples.dataset import Dataset, find_dataset, open_dataset
from unic_pipe.pipeline.samples.freshness import Changes, compare
from unic_pipe.pipeline.samples.labels import OLD_FOLDERS
from unic_pipe.pipeline.samples.places import where
from unic_pipe.pipeline.samples.scan import Piece, entries_of, folder_pieces, scan_pieces
from unic_pipe.pipeline.samples.undertaking import NEW_NAME, Work
from unic_pipe.schemas.errors import UserError

MOST_GONE = 0.5
"""Of an index's images: where more are gone, the data are rather elsewhere than deleted."""


def existing(work: Work) -> tuple[Dataset, Changes] | None:
    """The index to continue: the one in force if its data are there, else an earlier one of that name, else None.
    Raises UserError: the data of the one in force changed or went away; it was made with other settings."""
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
        changes = compare(old, work.source, trust_mtimes=False)
        own = store == current and old.manifest.source == work.source.text
        gone = changes.lost and changes.lost + len(old.manifest.gone)
        lost = gone > (MOST_GONE * old.manifest.rows if own else 0)
        if not changes.missing and not changes.resized and not lost:
            work.expect_same_settings(old.manifest)
            return old, changes
        if own:
            raise _refusal(work, old, changes)
    return None


def compared(work: Work, old: Dataset, rewritten: Sequence[str]) -> tuple[Dataset, bool]:
    """Tars and objects that were written again are read again: the same data in another copy are as good, other images are
    not. The index with their times, and whether they have other labels than it.
    Raises UserError: other images."""
    if not rewritten:
        return old, False
    pieces = work.tar_pieces(rewritten)
    tables = scan_pieces(pieces, work.scratch, work.progress, f"comparing {work.name}", work.stop)
    known = {
        (shard, offset): (content.tobytes(), label)
        for table in old.segments
        for shard, offset, content, label in zip(
            table.shards.to_pylist(), table.offsets.tolist(), table.hashes, table.labels.tolist(), strict=True
        )
    }
    relabelled = False
    for shard, table in zip(rewritten, tables, strict=True):
        rows = table.table().select(["offset", "xxh3", "label"]).to_pylist()
        found = {(shard, row["offset"]): (row["xxh3"], row["label"]) for row in rows}
        before = {place: row for place, row in known.items() if place[0] == shard}
        if {place: row[0] for place, row in found.items()} != {place: row[0] for place, row in before.items()}:
            raise UserError(
                f"dataset {work.name}: {shard} changed since it was indexed.", f"Restore it. Or: {NEW_NAME}"
            )
        shifted = {p: -1 if label is None else label - work.config.first_class for p, (_, label) in found.items()}
        relabelled |= shifted != {place: label for place, (_, label) in before.items()}
    now = {entry.path: entry for entry in entries_of(pieces, tables)}
    segments = tuple(
        segment.model_copy(update={"shards": tuple(now.get(entry.path, entry) for entry in segment.shards)})
        for segment in old.manifest.segments
    )
    if not relabelled:
        return described(old, segments=segments), False
    work.progress.say(
        f"dataset {work.name}: tars have other labels than when they were indexed; these count from now on."
    )
    # The times reach the disk together with the labels: killed before, the next index compares again.
    return Dataset(old.store, old.roots, old.manifest.model_copy(update={"segments": segments})), True


def described(old: Dataset, **fields: Any) -> Dataset:
    """An index whose manifest says something else of the same data."""
    manifest = old.manifest.model_copy(update=fields)
    if manifest == old.manifest:
        return old
    old.store.put("manifest.json", manifest.to_bytes())
    return Dataset(old.store, old.roots, manifest)


def gained(work: Work, old: Dataset, changes: Changes) -> tuple[list[Piece], tuple[str, ...]]:
    """What the source has that `old` has not, and the paths of indexed images that were deleted.
    Raises UserError: a new class folder that would renumber others."""
    if work.source.layout == "tars":
        return work.tar_pieces(changes.added), ()
    if work.source.layout == "listed":
        return [], ()
    names = tuple(folder.folder.name for folder in work.folders)
    known_classes = old.manifest.classes or ()
    if work.named and old.manifest.label_source == OLD_FOLDERS and known_classes != names[: len(known_classes)]:
        first = next(name for name in names if name not in known_classes)
        raise UserError(
            f"dataset {work.name}: the new class folder {first} would change the numbers of classes after it.",
            f"Name it so that it sorts last. Or: {NEW_NAME}",
        )
    known = {path for table in old.segments for path in table.shards.to_pylist()}
    there = {folder.shard(name) for folder in work.folders for name in folder.names}
    new = [replace(f, names=tuple(name for name in f.names if f.shard(name) not in known)) for f in work.folders]
    return folder_pieces(new, work.rule), tuple(sorted(known - there))


def _refusal(work: Work, old: Dataset, changes: Changes) -> UserError:
    looked = f"looked in {', '.join(map(where, work.roots))}"
    moved = f"Has the data moved? Set `samples.roots`. Or: {NEW_NAME}"
    if changes.resized:
        return UserError(
            f"dataset {work.name}: {len(changes.resized)} shards changed size since they were indexed "
            f"(first: {changes.resized[0]}).",
            f"Restore them. Or: {NEW_NAME}",
        )
    if not changes.missing:
        return UserError(
            f"dataset {work.name}: {changes.lost:,} of {old.manifest.rows:,} indexed images are not there ({looked}).",
            moved,
        )
    total = sum(len(segment.shards) for segment in old.manifest.segments)
    return UserError(
        f"dataset {work.name}: {len(changes.missing)} of {total} indexed shards are not there "
        f"(first: {changes.missing[0]}; {looked}).",
        moved,
    )
