"""Which batches' cls targets a queue holds: of the last whole global batches, this step's first, in canonical order.

Every process reads them from the cache, so that parts of a batch, processes and resumed trainings have the same queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from unic_pipe.stages.distill.data.batches import BatchPlan

QUEUED_IMAGES = 8192
"""Of whose cls targets a queue holds, rounded up to whole global batches (lightly-train)."""


def queued_batches(batch: int) -> int:
    """Global batches of a queue."""
    return -(-QUEUED_IMAGES // batch)


def with_queued(
    plans: Iterable[BatchPlan], plans_from: Callable[[int], Iterator[BatchPlan]], start: int, batch: int
) -> Iterator[BatchPlan]:
    """Global batches from step `start` on, with those that enter queues: each itself, and before the first of them all that
    a queue holds. `plans_from`: the training's global batches from a step on."""
    first = max(0, start + 1 - queued_batches(batch))
    before = tuple(islice(plans_from(first), start - first))
    for plan in plans:
        anew = plan.step == start
        yield replace(plan, queued=(*(before if anew else ()), plan), anew=anew)
