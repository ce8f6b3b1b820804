"""Test images that were trained on, found by the content hashes of the index. Said with the score, part of no digest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.evaluation_plans import Plan
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import benchmark_digest


class Overlaps:
    """Counts equal images of pairs of datasets, each pair once."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._counts: dict[tuple[str, str, int], int] = {}

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """What a reader of a result has to know: how many test images the probe or the student was trained on.

        Only equal bytes count: the same picture, encoded again, is another image.
        """
        test, found = plan.test, []
        train = plan.needs[0][1] if len(plan.needs) > 1 else None
        if train is not None and benchmark_digest(train.manifest) != benchmark_digest(test.manifest):
            found.append((self._count(train, test, train.blocks), "in the training set"))
        student = self._inventory.finished_students.get(plan.encoder.name) if plan.role == "student" else None
        if student is not None:
            blocks = dict(student.manifest.definition.datasets)
            for data in map(self._inventory.dataset, self._inventory.config.samples.datasets):
                if data.dataset is not None and data.dataset.digest in blocks:
                    count = self._count(data.dataset, test, blocks.pop(data.dataset.digest))
                    found.append((count, "among the images that the student was distilled from"))
        total = test.manifest.rows
        return tuple(
            f"{count:,} of {total:,} test images {'is' if count == 1 else 'are'} {where}."
            for count, where in found
            if count
        )

    def _count(self, train: Dataset, test: Dataset, blocks: int) -> int:
        """How many of the test set's images are among the first `blocks` blocks of the other."""
        key = train.store.location, test.store.location, blocks
        if key not in self._counts:
            rows = train.rows() < blocks * train.block_rows
            self._counts[key] = int(np.isin(_hashes(test), _hashes(train)[rows]).sum())
        return self._counts[key]


def _hashes(dataset: Dataset) -> NDArray[np.void]:
    """Content hash of every image (N,), 16 bytes each, in the order of `rows()`."""
    hashes_N16 = np.concatenate([segment.hashes for segment in dataset.segments])
    return np.ascontiguousarray(hashes_N16).view("V16")[:, 0]
