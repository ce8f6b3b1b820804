"""Batches, assembled ahead of the training step: planned in order, so threads change nothing but the time.

Shapes: B images, T teachers, U residual branches with drop path, S image side in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.config import TokenType
from stages.distill.draws import Purpose, uniforms
from stages.distill.images import StudentImages
from stages.distill.order import epoch_order, epoch_view
from stages.distill.targets import RawTargets, TargetReader

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


@dataclass(frozen=True)
class Batch:
    """What a step needs, on the CPU (pinned when the training device is a GPU)."""

    plan: BatchPlan
    images_B3SS: Tensor
    """uint8."""
    targets: dict[tuple[str, TokenType], RawTargets]
    drop_teacher_BT: Tensor
    """Uniform draws in [0, 1], float32; likewise the next."""
    drop_path_BU: Tensor


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
) -> Iterator[BatchPlan]:
    """The batches of a whole training from step `start` on; arguments as for `epoch_order`."""
    steps = len(rows_N) // batch
    for epoch in range(start // steps, epochs):
        order_SB = epoch_order(rows_N, block_rows, seed=seed, epoch=epoch, batch=batch, streams=streams, window=window)
        view = epoch_view(seed, epoch, views)
        for step in range(max(start - epoch * steps, 0), steps):
            yield BatchPlan(order_SB[step], view, epoch)


def sequential_plans(rows_N: NDArray[np.int64], batch: int) -> Iterator[BatchPlan]:
    """View 0 of all rows in order; the last batch may be smaller."""
    for start in range(0, len(rows_N), batch):
        yield BatchPlan(rows_N[start : start + batch], 0, 0)


@dataclass(frozen=True)
class Loader:
    """Reads what a plan names. One assembling thread keeps the order; `pool` decodes images and blocks."""

    images: StudentImages
    targets: TargetReader
    pool: Executor
    seed: int
    teachers: int
    branches: int
    pin: bool

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
                assembler.submit(self._request, plan)
                planned.append(plan)
                if len(planned) > AHEAD:
                    ready.append(assembler.submit(self._assemble, planned.popleft()))
                if len(ready) > READY:
                    yield ready.popleft().result()
            ready.extend(assembler.submit(self._assemble, plan) for plan in planned)
            while ready:
                yield ready.popleft().result()
        finally:
            assembler.shutdown(cancel_futures=True)

    def _request(self, plan: BatchPlan) -> None:
        self.targets.window.request(self.targets.keys(plan.rows_B, plan.view))

    def _assemble(self, plan: BatchPlan) -> Batch:
        images = self.images.batch(plan.rows_B, plan.view, self.pool)
        targets = self.targets.read(plan.rows_B, plan.view)
        if self.pin:
            images, targets = images.pin_memory(), {key: raw.pin() for key, raw in targets.items()}
        drop_teacher = self._draw(Purpose.DROP_TEACHER, plan, self.teachers)
        return Batch(plan, images, targets, drop_teacher, self._draw(Purpose.DROP_PATH, plan, self.branches))

    def _draw(self, purpose: Purpose, plan: BatchPlan, lanes: int) -> Tensor:
        return torch.from_numpy(uniforms(self.seed, purpose, plan.epoch, plan.rows_B, lanes)).float()
