"""Batches of a mixture: every dataset's rows are read by themselves, with its own codecs, and put in their places.

Shapes: B rows of a batch, M of them of one dataset, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.samples.mixtures import split
from unic_pipe.stages.distill.data.batches import BatchPlan
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.targets import MixedTargets, Pair, TargetReader, Targets


class Side(NamedTuple):
    """What reads one dataset."""

    images: ViewImages
    targets: TargetReader | None
    """None where teachers run in the loop."""
    class_by_row: NDArray[np.int64] | None = None
    """Where some student's loss is about classes; there is one side then."""
    queued: TargetReader | None = None
    """Reads whole global batches for queues, with blocks of its own; there is one side then."""


def request(sides: Sequence[Side], plan: BatchPlan) -> None:
    """Start reading the targets that a batch needs."""
    for part, _, rows_M in split(plan.rows_B):
        reader = sides[part].targets
        if reader is not None:
            reader.request(rows_M, plan.view, plan.patches)
    for queued in plan.queued:
        reader = sides[0].queued
        assert reader is not None, "made where a batch has some"
        reader.request(queued.rows_B, queued.view, patches=False)


def read_queued(sides: Sequence[Side], plan: BatchPlan) -> tuple[Targets, ...]:
    """cls targets of the batches that enter queues with this one."""
    reader = sides[0].queued
    return () if reader is None else tuple(reader.read(q.rows_B, q.view, patches=False) for q in plan.queued)


def read(sides: Sequence[Side], plan: BatchPlan, pool: Executor) -> tuple[Mapping[int, Tensor], Targets]:
    """A batch's images by size, uint8 (B, 3, S, S), and its targets (none where teachers run in the loop)."""
    places, images, targets = [], [], []
    for part, place_M, rows_M in split(plan.rows_B):
        side = sides[part]
        places.append(torch.from_numpy(place_M))
        images.append(side.images.batch(rows_M, plan.view, pool, plan.sizes))
        targets.append({} if side.targets is None else side.targets.read(rows_M, plan.view, plan.patches))
    if len(places) == 1:
        return images[0], targets[0]
    order_B = torch.cat(places).argsort()
    joined = {size: torch.cat([x[size] for x in images])[order_B] for size in images[0]}
    found: dict[Pair, MixedTargets] = {}
    for pair in dict.fromkeys(pair for mine in targets for pair in mine):
        parts = tuple((place, mine[pair]) for place, mine in zip(places, targets, strict=True) if pair in mine)
        found[pair] = MixedTargets(parts, len(parts) == len(places))
    return joined, found
