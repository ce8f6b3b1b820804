"""Which rows make up a batch, which of them are this process's, and what a batch holds.

Shapes: B images, N rows, T teachers, U residual branches with drop path, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.samples.mixtures import Mixture
from unic_pipe.pipeline.samples.order import epoch_view
from unic_pipe.stages.distill.data.targets import Targets


@dataclass(frozen=True)
class BatchPlan:
    """Which rows and view a batch holds, and in which epoch."""

    rows_B: NDArray[np.int64]
    """By their numbers in the mixture (see `pipeline.samples.mixtures`)."""
    view: int
    epoch: int
    patches: bool = True
    """Whether the view carries patches."""
    step: int = 0
    """In training, counted from 0."""
    sizes: tuple[int, ...] = ()
    """Image sizes that the batch is rendered at; none: all that may be asked for."""
    last: bool = True
    """Whether this is the last (or only) micro-batch of its step on this process."""
    masked: int = 0
    """Images of the global batch of which patches are masked, for students that are shown them."""
    queued: tuple[BatchPlan, ...] = ()
    """Whole global batches whose cls targets enter queues before this step's first micro-batch, oldest first."""
    anew: bool = False
    """Whether these are all that queues hold: of the first step, and of the first after a resume."""
    counted: bool = True
    """False: of a validation that others still have a batch of; its losses do not count."""


@dataclass(frozen=True)
class Share:
    """Which share of every batch this process trains on, and in how many micro-batches."""

    rank: int = 0
    size: int = 1
    micro: int | None = None
    """At most so many images at a time."""
    at_once: int = 1
    """Micro-batches of these that are learned from together."""

    def micro_batches(self, plan: BatchPlan) -> list[BatchPlan]:
        """This process's share of a planned batch, which `size` divides, in equal micro-batches."""
        mine_B = np.split(plan.rows_B, self.size)[self.rank]
        count = min(len(mine_B), -(-len(mine_B) // (self.micro or len(mine_B))) * self.at_once)
        split = np.array_split(mine_B, count)
        first = replace(plan, rows_B=split[0], last=count == 1)
        later = [replace(plan, rows_B=rows_B, last=rows_B is split[-1], queued=()) for rows_B in split[1:]]
        return [first, *later]

    def batches(self, plans: Sequence[BatchPlan]) -> list[BatchPlan]:
        """Every `size`-th of whole batches; the same number on every process, so some do not count."""
        count = -(-len(plans) // self.size) * self.size
        filled = [*plans, *(replace(plans[0], counted=False) for _ in range(count - len(plans)))]
        return filled[self.rank :: self.size]

    def batch(self, size: int) -> int:
        """Images of a whole batch that a process takes at a time when the global batch has `size`."""
        return min(size // self.size, self.micro or size)


@dataclass(frozen=True)
class Batch:
    """What a step needs, of every student that trains on it; on the CPU (pinned when the training device is a GPU)."""

    plan: BatchPlan
    images: Mapping[int, Tensor]
    """By image size: uint8 (B, 3, S, S)."""
    targets: Targets
    drop_teacher_BT: Tensor
    """Uniform draws in [0, 1], float32, likewise the next. T and U are the largest of any student; each takes the
    first columns, which are the same however many there are."""
    drop_path_BU: Tensor
    classes_B: Tensor | None = None
    """Classes of the training set (int64), where some student's loss is about them."""
    mask_BL: Tensor | None = None
    """Uniform draws where some student is shown masked images: whether one is, then of every patch; see `data.masks`."""
    queued: tuple[Targets, ...] = ()
    """cls targets of `plan.queued`."""
    noise_B3: Tensor | None = None
    """Uniform draws where some student's colours are changed; see `data.noise`."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every tensor changed: moved, or pinned."""
        return Batch(
            self.plan,
            {size: change(x) for size, x in self.images.items()},
            {pair: raw.each(change) for pair, raw in self.targets.items()},
            change(self.drop_teacher_BT),
            change(self.drop_path_BU),
            None if self.classes_B is None else change(self.classes_B),
            None if self.mask_BL is None else change(self.mask_BL),
            tuple({pair: raw.each(change) for pair, raw in targets.items()} for targets in self.queued),
            None if self.noise_B3 is None else change(self.noise_B3),
        )


def training_plans(
    mixture: Mixture,
    *,
    epochs: int,
    views: int,
    start: int,
    fresh: bool = False,
    patch_views: int | None = None,
    patch_every: int | None = None,
) -> Iterator[BatchPlan]:
    """The batches of a whole training from step `start` on.

    Epochs take turns with the `views` cached views (see `epoch_view`), or are a `fresh` view each: view number e in
    epoch e, with patches where the cached view in its place would have them.
    """
    steps = mixture.steps
    for epoch in range(start // steps, epochs):
        order_SB = mixture.order(epoch)
        cached = epoch_view(mixture.seed, epoch, views, patch_views, patch_every)
        patches = patch_views is None or cached < patch_views
        for step in range(max(start - epoch * steps, 0), steps):
            yield BatchPlan(order_SB[step], epoch if fresh else cached, epoch, patches, epoch * steps + step)


def sequential_plans(rows_N: NDArray[np.int64], batch: int) -> Iterator[BatchPlan]:
    """View 0 of all rows in order; the last batch may be smaller."""
    for start in range(0, len(rows_N), batch):
        yield BatchPlan(rows_N[start : start + batch], 0, 0)
