"""What a set of students is fed with: batches with the images and targets that some of them needs.

They are assembled ahead of the training step, and planned in order, so threads change nothing but the time.

Shapes: B images, N usable rows, T teachers, U residual branches with drop path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.process.streams import Streams, streams_of
from unic_pipe.pipeline.samples.draws import Purpose
from unic_pipe.pipeline.samples.mixtures import Mixture, split
from unic_pipe.pipeline.samples.order import step_size
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.codecs import CODECS
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import FeatureDefinition
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.clock import Times
from unic_pipe.stages.distill.data.batches import Batch, BatchPlan, Share, sequential_plans, training_plans
from unic_pipe.stages.distill.data.classes import class_by_row
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.live import LiveTeacher, live_targets
from unic_pipe.stages.distill.data.masks import MASKED_IMAGES
from unic_pipe.stages.distill.data.mixing import Side, read, read_queued, request
from unic_pipe.stages.distill.data.noise import LANES
from unic_pipe.stages.distill.data.queues import with_queued
from unic_pipe.stages.distill.data.rows import Rows, mixture_of, rows_digest
from unic_pipe.stages.distill.data.targets import (
    AnyTargets,
    BlockWindow,
    MixedTargets,
    Pair,
    Standard,
    TargetReader,
    Targets,
    Wanted,
    read_pairs,
)

READY = 3
"""Batches that wait assembled: all micro-batches that are learned from at once are one."""
AHEAD = 8
"""Further such batches whose blocks are already being read."""
VALIDATION_WINDOW = 4
"""Blocks that are kept while validation rows are read in order."""


@dataclass(frozen=True)
class Demand:
    """What one student takes of every batch."""

    image_size: int
    image_sizes: tuple[int, ...] | None
    """Of its training steps, where those are several."""
    standards: Mapping[Pair, Standard]
    """How it standardizes each teacher's tokens."""
    teachers: int
    branches: int
    """Residual branches with drop path."""
    epochs: int
    classes: bool = False
    """Whether its loss is about the images' classes."""
    cells: int = 0
    """Patches of its largest training images, where it is also shown masked ones."""
    queued: frozenset[Pair] = frozenset()
    """Teachers' tokens of which it holds a queue."""
    noise: bool = False
    """Whether its images' colours are changed."""

    def sizes(self, seed: int, step: int) -> set[int]:
        """What it takes in a training step."""
        return {self.image_size if self.image_sizes is None else step_size(seed, step, self.image_sizes)}


class Lanes(NamedTuple):
    """How many draws of an image the students of a pass take, at most."""

    teachers: int
    branches: int
    cells: int
    noise: bool


@dataclass
class Feed:
    """Gives batches to students that agree in rows, views, batch size and sample order."""

    training: tuple[Rows, ...]
    """Of every dataset of the mixture."""
    validation: tuple[Rows, ...]
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
    mixture: Mixture = field(init=False)
    streams: Streams = field(init=False)
    """Of the device."""
    _images: dict[tuple[object, ...], ViewImages] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.mixture = mixture_of(self.training, self.definition.config)
        self.streams = streams_of(self.device)

    def batches(self, students: Sequence[Demand], start: int, end: int) -> Generator[Batch]:
        """This process's batches of steps `start` to `end` - 1, on the device, with what these students need.

        A step may come in micro-batches, of which one is the `last`.

        Raises:
            StageError: data of a batch are missing or damaged; raised when that batch is due.
        """
        live, wanted = self.definition.live, _wanted(students)
        fixed = {self.teachers[t].size for t, _ in wanted} if live else set[int]()
        sizes = fixed.union(*(s.image_sizes or (s.image_size,) for s in students))
        # In the loop, every epoch has a fresh view: none is worth keeping.
        views = 0 if live else self.definition.views
        sides = [
            Side(
                self._view_images(rows, sizes, views),
                None if live else self._reader(rows, wanted, self.window(blocks)),
                self._classes(rows, students),
                self._queue_reader(rows, wanted, students),
            )
            for rows, (_, blocks) in zip(self.training, self.definition.datasets, strict=True)
        ]
        plans: Iterator[BatchPlan] = islice(self._plans(students, start), end - start)
        if any(student.queued for student in students):
            plans = with_queued(plans, partial(self._plans, students), start, self.mixture.batch)
        sized = (
            replace(
                plan,
                sizes=tuple(sorted(fixed.union(*(s.sizes(self.mixture.seed, plan.step) for s in students)))),
                masked=self._masked_images(plan) if any(s.cells for s in students) else 0,
            )
            for plan in plans
        )
        shares = (micro for plan in sized for micro in self.share.micro_batches(plan))
        with closing(self._load(shares, students, sides)) as batches:
            for batch in batches:
                if live:
                    yield replace(batch, targets=self._live_targets(batch, wanted))
                else:
                    yield batch

    def validation_batches(self, rows: Rows, students: Sequence[Demand]) -> Generator[Batch]:
        """This process's batches of one validation set, view 0, on the device; as many on every process."""
        if not students:
            return
        images = self._view_images(rows, {s.image_size for s in students}, 1)
        targets = self._reader(rows, _wanted(students), VALIDATION_WINDOW)
        side = Side(images, targets, self._classes(rows, students))
        size = self.share.batch(self.definition.config.optimizer.batch)
        plans = list(sequential_plans(rows.rows_N, size))
        with closing(self._load(self.share.batches(plans), students, [side])) as batches:
            yield from batches

    def window(self, blocks: int) -> int:
        """Decoded blocks of one teacher and token type that are kept while training on a dataset with so many: every
        stream reads from up to `window_blocks` at a time, and one more arrives while one more is leaving."""
        config = self.definition.config
        streams = config.streams // self.share.size
        return min(streams * (config.window_blocks + 2), blocks * self.definition.views)

    def window_bytes(self, students: Sequence[Demand]) -> int:
        """Memory that the decoded blocks take."""
        if self.definition.live:
            return 0
        total, wanted = 0, _wanted(students)
        for rows, (_, blocks) in zip(self.training, self.definition.datasets, strict=True):
            taught = _taught(rows, wanted)
            row_bytes = sum(_row_bytes(rows.source.caches[teacher].definition, token) for teacher, token in taught)
            total += self.window(blocks) * rows.source.dataset.block_rows * row_bytes
        return total

    def _plans(self, students: Sequence[Demand], start: int) -> Iterator[BatchPlan]:
        return training_plans(
            self.mixture,
            epochs=max(s.epochs for s in students),
            views=self.definition.views,
            start=start,
            fresh=self.definition.live,
            patch_views=self.definition.patch_views,
            patch_every=self.definition.patch_every,
        )

    def _load(
        self,
        plans: Iterable[BatchPlan],
        students: Sequence[Demand],
        sides: Sequence[Side],
    ) -> Generator[Batch]:
        """The planned batches in order, on the device. One assembling thread keeps the order."""
        lanes = Lanes(*map(max, zip(*((s.teachers, s.branches, s.cells, s.noise) for s in students), strict=True)))
        planned: deque[BatchPlan] = deque()
        ready: deque[Future[Batch]] = deque()
        assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        try:
            for plan in plans:
                assembler.submit(request, sides, plan)
                planned.append(plan)
                if len(planned) > AHEAD * self.share.at_once:
                    ready.append(assembler.submit(self._assemble, planned.popleft(), sides, lanes))
                if len(ready) > READY * self.share.at_once:
                    self.times.took(sum(batch.done() for batch in ready))
                    yield self._sent(ready.popleft().result())
            ready.extend(assembler.submit(self._assemble, plan, sides, lanes) for plan in planned)
            while ready:
                yield self._sent(ready.popleft().result())
        finally:
            assembler.shutdown(cancel_futures=True)

    def _assemble(self, plan: BatchPlan, sides: Sequence[Side], lanes: Lanes) -> Batch:
        images, targets = read(sides, plan, self.pool)
        drop_teacher_BT = self._draw(Purpose.DROP_TEACHER, plan, lanes.teachers)
        drop_path_BU = self._draw(Purpose.DROP_PATH, plan, lanes.branches)
        by_row = sides[0].class_by_row
        classes_B = None if by_row is None else torch.from_numpy(by_row[plan.rows_B])
        mask_BL = self._draw(Purpose.MASK, plan, 1 + lanes.cells) if lanes.cells else None
        noise_B3 = self._draw(Purpose.NOISE, plan, LANES) if lanes.noise else None
        queued = read_queued(sides, plan)
        batch = Batch(plan, images, targets, drop_teacher_BT, drop_path_BU, classes_B, mask_BL, queued, noise_B3)
        return batch.each(Tensor.pin_memory) if self.streams.pinned else batch

    def _sent(self, batch: Batch) -> Batch:
        """The batch on the device. It comes up beside the steps before it, and only its own step waits for it."""

        def send(x: Tensor) -> Tensor:
            x = x.to(self.device, non_blocking=True)
            self.streams.keep(x, "forward")
            return x

        with self.streams.on("up"):
            sent = batch.each(send)
        self.streams.wait("forward", self.streams.mark("up"))
        return sent

    def _queue_reader(self, rows: Rows, wanted: Wanted, students: Sequence[Demand]) -> TargetReader | None:
        """Whole global batches are read by every process, so blocks of all streams are kept."""
        pairs = {pair for student in students for pair in student.queued}
        if not pairs:
            return None
        config = self.definition.config
        queued = {pair: standards for pair, standards in wanted.items() if pair in pairs}
        return self._reader(rows, queued, config.streams * (config.window_blocks + 2))

    def _masked_images(self, plan: BatchPlan) -> int:
        """Of a whole global batch."""
        return int((self._draw(Purpose.MASK, plan, 1) < MASKED_IMAGES).sum())

    def _classes(self, rows: Rows, students: Sequence[Demand]) -> NDArray[np.int64] | None:
        return class_by_row(rows, self.training) if any(student.classes for student in students) else None

    def _draw(self, purpose: Purpose, plan: BatchPlan, lanes: int) -> Tensor:
        return torch.from_numpy(self.mixture.uniforms(purpose, plan.epoch, plan.rows_B, lanes)).float()

    def _live_targets(self, batch: Batch, wanted: Wanted) -> Targets:
        """Targets of a batch by the teachers in the loop, each of the rows of its datasets."""
        found: dict[Pair, AnyTargets] = {}
        parts = split(batch.plan.rows_B)
        for teacher in dict.fromkeys(teacher for teacher, _ in wanted):
            mine = {p: s for p, s in read_pairs(wanted, batch.plan.patches).items() if p[0] == teacher}
            taught = [place_M for part, place_M, _ in parts if teacher in self.training[part].source.caches]
            if len(taught) == len(parts):
                found |= live_targets(self.teachers, batch.images, mine)
            elif taught:
                place_M = torch.from_numpy(np.sort(np.concatenate(taught))).to(self.device)
                size = self.teachers[teacher].size
                raw = live_targets(self.teachers, {size: batch.images[size][place_M]}, mine)
                found |= {pair: MixedTargets(((place_M, targets),), whole=False) for pair, targets in raw.items()}
        return found

    def _reader(self, rows: Rows, wanted: Wanted, window: int) -> TargetReader:
        wanted = _taught(rows, wanted)
        blocks = BlockWindow(rows.source.caches, self.pool, window * len(wanted), self.times)
        return TargetReader(blocks, wanted, rows.source.dataset.block_rows)

    def _view_images(self, rows: Rows, sizes: set[int], views: int) -> ViewImages:
        """Kept from one call to the next while the sizes are the same; a set may be trained on and validated on."""
        first = next(iter(rows.source.caches.values())).definition
        name = rows.source.dataset.digest, digest_of(first.recipe), views, rows_digest(rows.rows_N)
        known = self._images.get(name)
        if known is None or set(known.sizes) != sizes:
            given = rows.source.dataset, first.recipe, first.view_seed, tuple(sorted(sizes)), views, rows.rows_N
            self._images[name] = ViewImages(*given, times=self.times)
        return self._images[name]


def _row_bytes(feature: FeatureDefinition, token: TokenType) -> int:
    """What a decoded row of one teacher's tokens takes in memory."""
    encoder, codec = feature.encoder, feature.codec.name
    values = encoder.cls_dim if token == "cls" else encoder.grid[0] * encoder.grid[1] * encoder.patch_dim
    return values * (CODECS[codec].value_bytes if codec in CODECS else 2)


def _taught(rows: Rows, wanted: Wanted) -> Wanted:
    """What is wanted of the teachers that teach on a dataset."""
    return {pair: standards for pair, standards in wanted.items() if pair[0] in rows.source.caches}


def _wanted(students: Sequence[Demand]) -> Wanted:
    """Every standardization of every teacher's tokens that some student wants."""
    wanted: dict[Pair, dict[str, Standard]] = {}
    for student in students:
        for pair, standard in student.standards.items():
            wanted.setdefault(pair, {})[standard.name] = standard
    return wanted
