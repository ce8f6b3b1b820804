"""Features and labels of one labelled dataset, as probes take them. N samples, D dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.classes import Names
from unic_pipe.pipeline.workspace.results import unlabelled
from unic_pipe.schemas.errors import StageError

if TYPE_CHECKING:
    from unic_pipe.pipeline.cache.reader import FeatureCache
    from unic_pipe.pipeline.samples.dataset import Dataset


@dataclass(frozen=True)
class Features:
    """The `cls` features of a dataset's usable rows, in row order, with their labels."""

    name: str
    """The dataset's name, for messages."""
    x_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    """Class numbers >= 0; -1 where a sample has none."""
    left_out: int = 0
    """Rows without features: their images could not be decoded, or their features were not finite."""
    classes: Names = None
    """Class names in the order of the numbers, where the dataset has them."""
    rows_N: NDArray[np.int64] | None = None
    """Their row numbers in the dataset, where it is one."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the scores has to know."""
        return left_out_remarks(self.name, self.left_out)


def read_features(cache: FeatureCache, dataset: Dataset) -> Features:
    """Read view 0's `cls` tokens block by block and join the labels by row number.

    Raises:
        UserError: the dataset has no labels, or none at all for some rows.
        StageError: a unit is missing or damaged, or its rows are not the dataset's.
    """
    name = dataset.manifest.name
    by_row = dataset.labels_by_row()
    if not dataset.manifest.labelled:
        raise unlabelled(dataset)
    x_ND = np.empty((dataset.manifest.rows, cache.dims["cls"]), dtype=np.float32)
    labels_N, rows_N = (np.empty(dataset.manifest.rows, dtype=np.int64) for _ in range(2))
    end = 0
    for number in range(dataset.blocks):
        values, valid = cache.read_block(0, "cls", number)
        valid = valid & dataset.kept(number)
        first, count = dataset.block_range(number)
        record = cache.records(0, "cls")[number]
        if record.rows != dataset.block_digest(number) or record.count != count:
            raise StageError(
                f"Features of {name} by {cache.manifest.encoder}, block {number}, are of other rows than the index has.",
                "Extract that block again: unic-pipe extract",
            )
        start, end = end, end + int(valid.sum())
        x_ND[start:end] = values[valid]
        rows_N[start:end] = first + np.flatnonzero(valid)
        labels_N[start:end] = by_row[rows_N[start:end]]
    left_out = dataset.manifest.rows - end
    return Features(name, x_ND[:end], labels_N[:end], left_out, dataset.manifest.classes, rows_N[:end])


def left_out_remarks(dataset: str, rows: int) -> tuple[str, ...]:
    """Says that rows of a dataset were left out, if any were."""
    return (f"{rows:,} rows of {dataset} have no usable features: left out.",) if rows else ()
