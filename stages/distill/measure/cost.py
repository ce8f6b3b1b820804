"""What a training step costs on this machine: a few steps on made-up images and targets, before anything is trained.

Shapes: B images, S image side in pixels, T teachers, U residual branches, P patch tokens, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from operator import methodcaller

import numpy as np
import torch

from unic_pipe.pipeline.process.memory import freed_memory_kept
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import torch_threads
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.data.batches import Batch, BatchPlan
from unic_pipe.stages.distill.data.noise import LANES
from unic_pipe.stages.distill.data.targets import Affine, RawTargets
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.schedule import make_optimizer
from unic_pipe.stages.distill.parallel.copies import Copies, at_once

STEPS, MOST_STEPS, SETTLED = 2, 6, 0.95
"""Steps that are measured, after one that prepares: at least; at most; and the part of the least time until then that the
last one must have taken for another to be measured. The first few find neither kernels nor memory ready."""
CPU_IMAGES, FIRST_IMAGES, WARMING = 32, 4, 2
"""Images of a measured step on a CPU: at most, first, and of the one that prepares."""
CPU_SECONDS = 1.0
"""What a measured step on a CPU may take, for every part that is learned from at once. Its images are doubled as long as they
would not take longer: few images of a small network take twice as long each as many."""


@dataclass(frozen=True)
class StepCost:
    """What a student takes."""

    seconds: float
    """Of a training step."""
    first_seconds: float
    """Of the first steps, one of every image size, where whole batches were measured."""
    checkpoint_bytes: int
    export_bytes: int


def step_cost(definition: StudentDefinition, device: str, compiled: bool = False, whole: bool = False) -> StepCost:
    """Measure the student of a definition; the optimizer's step and the loss are the real ones.

    What is compiled is measured on whole batches, since another number of images is compiled anew. `whole`: no parts of a
    batch are learned from at once.

    Raises:
        UserError: the configuration does not make a student or a ladder.
    """
    sizes = definition.config.image_sizes or (definition.config.image_size,)
    # Steps of every size are of a student of one size, whose images are of another.
    config, on = definition.config.model_copy(update={"image_sizes": None}), torch.device(device)
    with torch_threads(config.threads, on), freed_memory_kept(on.type), ExitStack() as stack:
        model = Distiller(config, definition.teachers, on)
        optimizer = make_optimizer(model.student, model.ladder, config.optimizer)
        parts = 1 if compiled or whole or on.type != "cpu" else at_once(config, config.threads, DistillConfig())
        copies = stack.enter_context(closing(Copies(model, parts, config.threads)))
        if compiled:
            model.compile_parts()
        watch, found, firsts = Stopwatch(device=device), [], []

        def measured(count: int, size: int) -> tuple[float, float]:
            """Seconds of an image's passes, and of the optimizer, which takes as long whatever the batch."""
            each = -(-count // parts)
            batches = [_batch(definition, model, each, size).each(methodcaller("to", on)) for _ in copies.models]
            watch.begin()
            with watch.time("passes"):
                optimizer.zero_grad(set_to_none=True)
                copies.each(_passes, batches)
            with watch.time("optimizer"):
                copies.apart(optimizer.step)
            lap = watch.laps[-1]
            return lap["passes"].wall / (each * parts), lap["optimizer"].wall

        for size in sizes:
            count, began = config.optimizer.batch, time.perf_counter()
            if on.type == "cpu" and not compiled:
                most, count = min(CPU_IMAGES, count), min(FIRST_IMAGES, count)
                measured(min(WARMING, count), size)
                alone = measured(count, size)
                while 2 * count <= most and 2 * count * alone[0] <= CPU_SECONDS * parts:
                    count *= 2
                    alone = measured(count, size)
                if count * alone[0] > CPU_SECONDS * parts:
                    found.append(alone)
                    continue
            else:
                measured(count, size)
                firsts.append(time.perf_counter() - began)
            found.append(_least(partial(measured, count, size)))
    image_s, optimizer_s = (sum(column) / len(found) for column in zip(*found, strict=True))
    seconds = config.optimizer.batch * image_s + optimizer_s
    student = sum(p.numel() * p.element_size() for p in model.student.parameters())
    ladder = sum(p.numel() * p.element_size() for p in model.ladder.parameters())
    kept = 3 if config.ema is None else 4
    return StepCost(seconds, sum(firsts), kept * (student + ladder), student)


def _least(measured: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The least of steps, of which there are more while they become faster."""
    found = [measured() for _ in range(STEPS)]
    while len(found) < MOST_STEPS and found[-1][0] < SETTLED * min(found[:-1])[0]:
        found.append(measured())
    return min(found)


def _passes(model: Distiller, batch: Batch) -> None:
    model(batch)[2].backward()


def _batch(definition: StudentDefinition, model: Distiller, count: int, size: int) -> Batch:
    random = torch.Generator().manual_seed(0)
    grids = {t.name: t.grid[0] * t.grid[1] for t in definition.teachers}
    dims = {
        (t.name, token): d for t in definition.teachers for token, d in (("cls", t.cls_dim), ("patch", t.patch_dim))
    }
    targets = {}
    for (teacher, token), standard in model.standards.items():
        d = dims[teacher, token]
        shape = (count, d) if token == "cls" else (count, grids[teacher], d)
        affine = Affine(torch.ones(1, d), torch.zeros(1, d))
        values = torch.randn(shape, generator=random).half()
        targets[teacher, token] = RawTargets(values, torch.zeros(count, dtype=torch.int64), {standard.name: affine})
    return Batch(
        BatchPlan(np.arange(count), 0, 0),
        {
            definition.config.image_size: torch.randint(
                0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random
            )
        },
        targets,
        torch.rand(count, len(definition.teachers), generator=random),
        torch.rand(count, len(model.student.drop_paths), generator=random),
        torch.zeros(count, dtype=torch.int64),
        torch.rand(count, 1 + model.cells, generator=random) if model.cells else None,
        noise_B3=torch.rand(count, LANES, generator=random) if definition.config.noise else None,
    )
