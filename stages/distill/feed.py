"""What a set of students is fed with: one loader for all, with the images and targets that some of them needs.

Shapes: N usable rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cache.reader import FeatureCache
from pipeline.samples.dataset import Dataset
from schemas.codecs import CODECS
from schemas.students import StudentDefinition
from stages.distill.bottleneck import Times
from stages.distill.images import ViewImages
from stages.distill.live import LiveTeacher, live_targets
from stages.distill.loader import Batch, BatchPlan, Loader, Share, sequential_plans, training_plans
from stages.distill.targets import BlockWindow, Pair, Standard, TargetReader, Wanted, read_pairs
from stages.distill.training import Training

VALIDATION_WINDOW = 4
"""Blocks that are kept while validation rows are read in order."""


@dataclass(frozen=True)
class Source:
    """Samples, and every teacher's features of them."""

    dataset: Dataset
    caches: Mapping[str, FeatureCache]


@dataclass(frozen=True)
class Rows:
    """A source, and its rows that can be used."""

    source: Source
    rows_N: NDArray[np.int64]


@dataclass
class Feed:
    """Gives batches to students that agree in rows, views, batch size and sample order."""

    training: Rows
    validation: Rows | None
    definition: StudentDefinition
    """Of any of the students: they agree in what is read here."""
    pool: Executor
    device: torch.device
    teachers: Mapping[str, LiveTeacher]
    """Teachers in the loop; empty when targets come from the caches."""
    share: Share = field(default_factory=Share)
    """What this process takes of every batch: it reads nothing else."""
    times: Times = field(default_factory=Times)
    """Where the time of the reading threads goes."""
    threads: int = 1
    """Of the pool."""
    _images: dict[str, ViewImages] = field(init=False, default_factory=dict)

    def batches(self, students: Sequence[Training], start: int, end: int) -> Generator[Batch]:
        """This process's batches of steps `start` to `end` - 1, on the device, with what these students need.

        A step may come in parts, of which one is the `last`.

        Raises:
            StageError: data of a batch are missing or damaged; raised when that batch is due.
        """
        live, wanted = self.definition.live, _wanted(students)
        sizes = _sizes(students) | ({self.teachers[t].size for t, _ in wanted} if live else set())
        # In the loop, every epoch has a fresh view: none is worth keeping.
        images = self._view_images(self.training, sizes, 0 if live else self.definition.views)
        targets = None if live else self._reader(self.training, wanted, self.window)
        loader = self._loader(students, images, targets)
        steps = islice(self._plans(students, start), end - start)
        with closing(loader.batches(part for plan in steps for part in self.share.parts(plan))) as batches:
            for batch in batches:
                on_device = batch.to(self.device)
                if live:
                    pairs = read_pairs(wanted, batch.plan.patches)
                    on_device = replace(on_device, targets=live_targets(self.teachers, on_device.images, pairs))
                yield on_device

    def validation_batches(self, students: Sequence[Training]) -> Generator[Batch]:
        """This process's batches of the validation rows, view 0, on the device; as many on every process."""
        if self.validation is None or not students:
            return
        images = self._view_images(self.validation, _sizes(students), 1)
        targets = self._reader(self.validation, _wanted(students), VALIDATION_WINDOW)
        loader = self._loader(students, images, targets)
        size = self.share.batch(self.definition.config.optimizer.batch)
        plans = list(sequential_plans(self.validation.rows_N, size))
        with closing(loader.batches(self.share.batches(plans))) as batches:
            for batch in batches:
                yield batch.to(self.device)

    @property
    def window(self) -> int:
        """Decoded blocks of one teacher and token type that are kept while training: every stream reads from up to
        `window_blocks` at a time, and one more arrives while one more is leaving."""
        config = self.definition.config
        streams = config.streams // self.share.size
        return min(streams * (config.window_blocks + 2), self.definition.blocks * self.definition.views)

    def window_bytes(self, students: Sequence[Training]) -> int:
        """Memory that the decoded blocks take."""
        source, row_bytes = self.training.source, 0
        for teacher, token in _wanted(students):
            encoder, codec = source.caches[teacher].definition.encoder, source.caches[teacher].definition.codec.name
            values = encoder.cls_dim if token == "cls" else encoder.grid[0] * encoder.grid[1] * encoder.patch_dim
            row_bytes += values * (CODECS[codec].value_bytes if codec in CODECS else 2)
        return 0 if self.definition.live else self.window * source.dataset.block_rows * row_bytes

    def _plans(self, students: Sequence[Training], start: int) -> Iterator[BatchPlan]:
        config = self.definition.config
        return training_plans(
            self.training.rows_N,
            self.training.source.dataset.block_rows,
            seed=config.seed,
            epochs=max(s.config.optimizer.epochs for s in students),
            views=self.definition.views,
            batch=config.optimizer.batch,
            streams=config.streams,
            window=config.window_blocks,
            start=start,
            fresh=self.definition.live,
            patch_views=self.definition.patch_views,
            patch_every=self.definition.patch_every,
        )

    def _loader(self, students: Sequence[Training], images: ViewImages, targets: TargetReader | None) -> Loader:
        return Loader(
            images=images,
            targets=targets,
            pool=self.pool,
            seed=self.definition.config.seed,
            teachers=max(len(s.definition.teachers) for s in students),
            branches=max(len(s.model.student.drop_paths) for s in students),
            pin=self.device.type == "cuda",
            times=self.times,
        )

    def _reader(self, rows: Rows, wanted: Wanted, window: int) -> TargetReader:
        blocks = BlockWindow(rows.source.caches, self.pool, window * len(wanted), self.times)
        return TargetReader(blocks, wanted, rows.source.dataset.block_rows)

    def _view_images(self, rows: Rows, sizes: set[int], views: int) -> ViewImages:
        """Kept from one call to the next while the sizes are the same."""
        name, first = rows.source.dataset.manifest.name, next(iter(rows.source.caches.values())).definition
        known = self._images.get(name)
        if known is None or set(known.sizes) != sizes:
            given = rows.source.dataset, first.recipe, first.view_seed, tuple(sorted(sizes)), views, rows.rows_N
            self._images[name] = ViewImages(*given, times=self.times)
        return self._images[name]


def _sizes(students: Sequence[Training]) -> set[int]:
    return {student.config.image_size for student in students}


def _wanted(students: Sequence[Training]) -> Wanted:
    """Every standardization of every teacher's tokens that some student wants."""
    wanted: dict[Pair, dict[str, Standard]] = {}
    for student in students:
        for pair, standard in student.model.standards.items():
            wanted.setdefault(pair, {})[standard.name] = standard
    return wanted
