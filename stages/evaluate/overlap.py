"""Test images that were trained on, found by the content hashes of the index. Said with the score, part of no digest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.evaluation_plans import Plan
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import benchmark_digest
from unic_pipe.schemas.chains import named_student
from unic_pipe.schemas.students import StudentDefinition


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
        data = [self._inventory.dataset(name).dataset for name in self._inventory.config.samples.datasets]
        indexed = {dataset.digest: dataset for dataset in data if dataset is not None}
        counted = set()
        for name, made in self._lineage(plan.encoder.name) if plan.role == "student" else ():
            for which in made.datasets:
                digest, blocks = which
                dataset = indexed.get(digest)
                if dataset is None or which in counted:
                    continue
                counted.add(which)
                who = "the student" if name == plan.encoder.name else f"{name}, which it learned from,"
                found.append((self._count(dataset, test, blocks), f"among the images that {who} was distilled from"))
        total = test.manifest.rows
        return tuple(
            f"{count:,} of {total:,} test images {'is' if count == 1 else 'are'} {where}."
            for count, where in found
            if count
        )

    def _lineage(self, name: str) -> Iterator[tuple[str, StudentDefinition]]:
        """What a student was made from, and the finished students that taught it or that it began from, and theirs.

        What other teachers were trained on is nowhere in their weights.
        """
        inventory, names, seen = self._inventory, [name], set[str]()
        while names:
            student = inventory.finished_students.get(names.pop(0))
            if student is None or student.name in seen:
                continue
            seen.add(student.name)
            made = student.manifest.definition
            yield student.name, made
            teachers = (inventory.config.teachers.get(teacher.name) for teacher in made.teachers)
            chosen = [named_student(teacher.encoder) for teacher in teachers if teacher is not None]
            start = made.config.start
            for needed in (*chosen, None if start is None else named_student(start.encoder) or start.encoder):
                names += [] if needed is None else [needed, inventory.student_name(needed)]

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
