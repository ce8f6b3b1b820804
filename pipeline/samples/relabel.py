"""Labels of a source, and giving new ones to rows that keep their numbers, keys and hashes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.folders import ImageFolder, listed
from unic_pipe.pipeline.samples.labels import find_labels, read_labels
from unic_pipe.pipeline.samples.places import Root
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.samples.table import from_parquet, labels_digest, labels_of, one_array, to_parquet
from unic_pipe.pipeline.storage import fast_hash
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import Segment


@dataclass(frozen=True)
class SourceLabels:
    """What a source says of its labels."""

    classes: tuple[str, ...] | None
    """As in the manifest."""
    label_of: Callable[[str], int | None] | None = None
    """The label of an image by its path relative to the root; None where scanning gives the labels (tars, no labels)."""
    first_class: int = 0
    """What is subtracted from labels that are numbers."""
    remarks: tuple[str, ...] = ()

    def apply(self, table: pa.Table, scanned: pa.Array, dataset: str) -> pa.Table:
        """The table with its labels; `scanned` are those that scanning gave.
        Raises UserError: a label below `first_class`."""
        labels = (
            scanned if self.label_of is None else pa.array(map(self.label_of, table["shard"].to_pylist()), pa.int32())
        )
        if self.first_class:
            numbers = labels.to_pylist()
            low = next((n for n in numbers if n is not None and n < self.first_class), None)
            if low is not None:
                raise UserError(
                    f"dataset {dataset}: class {low} is below first_class ({self.first_class}).",
                    f"Check samples.datasets.{dataset}.first_class.",
                )
            labels = pa.array([None if n is None else n - self.first_class for n in numbers], pa.int32())
        place = table.schema.get_field_index("label")
        return table.set_column(place, table.schema.field("label"), labels)


def source_labels(
    name: str, config: DatasetConfig, source: Source, folders: Sequence[ImageFolder], roots: Sequence[Root], named: bool
) -> SourceLabels:
    """Class names and labels of dataset `name`; `folders` are those of its source (none for tars), `named` whether class
    folders are known by name.
    Raises UserError: a labels file that is not there or does not fit, numbers to shift where classes have names."""
    found = _source_labels(config, source, folders, roots, named)
    if config.first_class and found.classes is not None:
        raise UserError(
            f"dataset {name}: first_class is for classes that are numbers, and these have names ({found.classes[0]}, ...).",
            f"Remove samples.datasets.{name}.first_class.",
        )
    return found


def _source_labels(
    config: DatasetConfig, source: Source, folders: Sequence[ImageFolder], roots: Sequence[Root], named: bool
) -> SourceLabels:
    first = config.first_class
    if source.layout == "tars":
        return SourceLabels(None, first_class=first)
    if source.layout == "listed":
        lists = listed(source)
        return SourceLabels(lists.classes, dict(zip(lists.files, lists.labels, strict=True)).get)
    if source.layout == "class-folders":
        depth, labels = len(PurePosixPath(source.base).parts), {folder.folder.name: folder.label for folder in folders}
        names = tuple(folder.folder.name for folder in folders) if named else None
        return SourceLabels(names, lambda shard: labels[shard.split("/")[depth]], first)
    path = find_labels(config, roots)
    if path is None:
        return SourceLabels(None)
    (folder,) = folders
    found = read_labels(path, folder.folder, folder.names, folder.deleted)
    by_shard = {folder.shard(name): label for name, label in zip(folder.names, found.numbers, strict=True)}
    return SourceLabels(found.classes, by_shard.get, first, found.remarks)


def relabelled(old: Dataset, found: SourceLabels, scanned: pa.Table | None) -> list[tuple[Segment, bytes, pa.Table]]:
    """The segments of an index with other labels: each with its Parquet file and its rows.

    `scanned`: rows of the index's tars as scanning gives them now; None for folders.

    Raises:
        UserError: a tar holds other images than it did.
        StageError: the index is damaged.
    """
    labels: dict[tuple[str, int], int | None] = {}
    if scanned is not None:
        columns = (scanned[column].to_pylist() for column in ("shard", "offset", "label"))
        labels = {(shard, offset): label for shard, offset, label in zip(*columns, strict=True)}
    segments = []
    for table in old.segments:
        table.check()
        rows = from_parquet(old.store.get(table.segment.file))
        places = list(zip(rows["shard"].to_pylist(), rows["offset"].to_pylist(), strict=True))
        other = next((shard for shard, offset in places if scanned is not None and (shard, offset) not in labels), None)
        if other is not None:
            raise UserError(
                f"dataset {old.manifest.name}: {other} changed since it was indexed.",
                "Restore it, or give the dataset another name under samples.datasets.",
            )
        rows = found.apply(rows, pa.array([labels.get(place) for place in places], pa.int32()), old.manifest.name)
        data = to_parquet(rows)
        digest = labels_digest(labels_of(one_array(rows["label"])))
        segment = table.segment.model_copy(update={"labels_digest": digest, "file_digest": fast_hash(data)})
        segments.append((segment, data, rows))
    return segments
