"""Batches, assembled ahead of the training step: planned in order, so threads change nothing but the time.

Shapes: B images, T teachers, U residual branches with drop path, S image side in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws import Purpose, uniforms
from pipeline.order import epoch_order, epoch_view
from stages.distill.clock import Times
from stages.distill.data.images import ViewImages
from stages.distill.data.targets import TargetReader, Targets

READY = 3
"""Batches that wait assembled."""

AHEAD = 8
"""Further batches whose blocks are already being read."""


@dataclass(frozen=True)
class BatchPlan:
    """Which rows and view a batch holds, and in which epoch."""

    rows_B: NDArray[np.int64]
    view: int
    epoch: int
    patches: bool = True
    """Whether the view carries patches."""
    last: bool = True
    """Whether this is the last (or only) part of its step on this process."""
    counted: bool = True
    """False: of a validation that others still have a batch of; its losses do not count."""


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process trains on, and in how many parts."""

    rank: int = 0
    size: int = 1
    micro: int | None = None
    """At most so many images at a time."""

    def parts(self, plan: BatchPlan) -> list[BatchPlan]:
        """This process's share of a planned batch, which `size` divides, in equal parts."""
        mine_B = np.split(plan.rows_B, self.size)[self.rank]
        count = -(-len(mine_B) // (self.micro or len(mine_B)))
        parts = np.array_split(mine_B, count)
        return [replace(plan, rows_B=rows_B, last=i == count - 1) for i, rows_B in enumerate(parts)]

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

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            self.plan,
            {size: x.to(device, non_blocking=True) for size, x in self.images.items()},
            {pair: raw.to(device) for pair, raw in self.targets.items()},
            self.drop_teacher_BT.to(device, non_blocking=True),
            self.drop_path_BU.to(device, non_blocking=True),
        )


def training_plans(
    rows_N: NDArray[np.int64],
    block_rows: int,
    *,
    seed: int,
    epochs: int,
    views: int,
    batch: int,
    streams: int,
    window: int,
    start: int,
    fresh: bool = False,
    patch_views: int | None = None,
    patch_every: int | None = None,
) -> Iterator[BatchPlan]:
    """The batches of a whole training from step `start` on; arguments as for `epoch_order`.

    Epochs take turns with the `views` cached views (see `epoch_view`), or are a `fresh` view each: view number e in
    epoch e, with patches where the cached view in its place would have them.
    """
    steps = len(rows_N) // batch
    for epoch in range(start // steps, epochs):
        order_SB = epoch_order(rows_N, block_rows, seed=seed, epoch=epoch, batch=batch, streams=streams, window=window)
        cached = epoch_view(seed, epoch, views, patch_views, patch_every)
        patches = patch_views is None or cached < patch_views
        for step in range(max(start - epoch * steps, 0), steps):
            yield BatchPlan(order_SB[step], epoch if fresh else cached, epoch, patches)


def sequential_plans(rows_N: NDArray[np.int64], batch: int) -> Iterator[BatchPlan]:
    """View 0 of all rows in order; the last batch may be smaller."""
    for start in range(0, len(rows_N), batch):
        yield BatchPlan(rows_N[start : start + batch], 0, 0)


@dataclass(frozen=True)
class Loader:
    """Reads what a plan names. One assembling thread keeps the order; `pool` decodes images and blocks."""

    images: ViewImages
    targets: TargetReader | None
    """None: batches come without targets."""
    pool: Executor
    seed: int
    teachers: int
    branches: int
    pin: bool
    times: Times = field(default_factory=Times)

    def batches(self, plans: Iterable[BatchPlan]) -> Generator[Batch]:
        """The planned batches in order.

        Raises:
            StageError: data of a batch are missing or damaged; raised when that batch is due.
        """
        planned: deque[BatchPlan] = deque()
        ready: deque[Future[Batch]] = deque()
        assembler = ThreadPoolExecutor(1, thread_name_prefix="assemble")
        try:
            for plan in plans:
                if self.targets is not None:
                    assembler.submit(self.targets.request, plan.rows_B, plan.view, plan.patches)
                planned.append(plan)
                if len(planned) > AHEAD:
                    ready.append(assembler.submit(self._assemble, planned.popleft()))
                if len(ready) > READY:
                    self.times.took(sum(batch.done() for batch in ready))
                    yield ready.popleft().result()
            ready.extend(assembler.submit(self._assemble, plan) for plan in planned)
            while ready:
                yield ready.popleft().result()
        finally:
            assembler.shutdown(cancel_futures=True)

    def _assemble(self, plan: BatchPlan) -> Batch:
        images = self.images.batch(plan.rows_B, plan.view, self.pool)
        targets = {} if self.targets is None else self.targets.read(plan.rows_B, plan.view, plan.patches)
        if self.pin:
            images = {size: x.pin_memory() for size, x in images.items()}
            targets = {pair: raw.pin() for pair, raw in targets.items()}
        drop_teacher = self._draw(Purpose.DROP_TEACHER, plan, self.teachers)
        return Batch(plan, images, targets, drop_teacher, self._draw(Purpose.DROP_PATH, plan, self.branches))

    def _draw(self, purpose: Purpose, plan: BatchPlan, lanes: int) -> Tensor:
        return torch.from_numpy(uniforms(self.seed, purpose, plan.epoch, plan.rows_B, lanes)).float()
