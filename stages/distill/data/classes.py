"""Classes of images, for losses about the classes of the training set; validation images are of these or left out.

Shapes: N usable rows, R row numbers, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.classes import match_classes
from unic_pipe.stages.distill.data.rows import Rows


def class_by_row(rows: Rows, training: Sequence[Rows]) -> NDArray[np.int64]:
    """The training set's class of every row number of a dataset, (R,); -1 where there is none among the rows trained on.

    Raises:
        UserError: the datasets have no class in common.
    """
    (ours,) = training  # a student of several datasets has no such loss
    trained_R = ours.source.dataset.labels_by_row()
    if rows.source.dataset.digest == ours.source.dataset.digest:
        found_R = trained_R
    else:
        names = [(r.source.dataset.manifest.name, r.source.dataset.manifest.classes) for r in (ours, rows)]
        found_R = match_classes(*names).in_training(rows.source.dataset.labels_by_row())
    return np.where(np.isin(found_R, trained_R[ours.rows_N]), found_R, -1)


def of_known_classes(rows: Rows, training: Sequence[Rows]) -> Rows:
    """The rows of classes that are trained on. Raises UserError, as `class_by_row` does."""
    return Rows(rows.source, rows.rows_N[class_by_row(rows, training)[rows.rows_N] >= 0])
