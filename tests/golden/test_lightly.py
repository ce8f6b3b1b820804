"""lightly-train's numbers: v1 (queue), v2 (maps) and v3 (queue and cells). Images are not mixed here."""

from __future__ import annotations

import json

import pytest
import torch
from recipe_numbers import close, close_gradient, loaded, tensor, under
from torch import Tensor

from unic_pipe.pipeline.students.heads.mlp import linear, norm_mlp
from unic_pipe.stages.distill.data.targets import GridResampler
from unic_pipe.stages.distill.losses.mse import mse
from unic_pipe.stages.distill.losses.similarity import cell_similarity, pushed, queue_similarity, unit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("lightly")


@pytest.fixture(scope="module")
def options(numbers):
    return json.loads(str(numbers["options"]))


def cells(map_BDHW: Tensor, size: tuple[int, int], head: torch.nn.Module | None = None) -> Tensor:
    """Tokens on another grid; the head comes first."""
    x_BPD = map_BDHW.flatten(2).mT
    resample = GridResampler(tuple(map_BDHW.shape[2:]), size, CPU, antialias=False)
    return resample(x_BPD if head is None else head(x_BPD))


def head_of(state) -> torch.nn.Module:
    return loaded(linear(*reversed(state["weight"].shape)), state)


def test_v1(numbers, options):
    mine = under(numbers, "v1")
    embedding = tensor(mine["student_embedding"], grad=True)
    student, teacher = head_of(under(mine, "head"))(embedding.flatten(1)), tensor(mine["teacher_raw"])
    close(unit(student), mine["student"])
    close(unit(teacher), mine["teacher"])
    queue = pushed(tensor(mine["queue_before"]), teacher)
    close(queue, mine["queue_after"])
    loss = queue_similarity(student, teacher, queue, options["v1_temperature"]).mean()
    close(loss, mine["loss"])
    loss.backward()
    close_gradient(embedding, mine["grad_student_embedding"])
    close(pushed(torch.zeros(mine["small_queue_after"].shape), teacher), mine["small_queue_after"])
    first = pushed(torch.zeros(mine["first_step_queue_after"].shape), teacher)
    close(first, mine["first_step_queue_after"])
    close(queue_similarity(student, teacher, first, options["v1_temperature"]).mean(), mine["first_step_loss"])


@pytest.mark.parametrize("case", ["v2", "v2_mlp", "v2_two_sizes"])
def test_v2(numbers, options, case):
    mine = under(numbers, case)
    layers = [tensor(mine[f"teacher_layer/{i}"]) for i in range(options["v2_n_teacher_blocks"])]
    size = tuple(layers[-1].shape[2:])
    teacher = torch.cat([cells(layer, size) for layer in layers], dim=-1)
    close(teacher, mine["teacher"])
    state = {key.removeprefix("mlp."): value for key, value in under(mine, "head").items()}
    if "weight" in state:
        head = head_of(state)
    else:
        hidden, width = state["0.weight"].shape
        head = loaded(norm_mlp(width, hidden, len(state["3.weight"])), state)
    student_map = tensor(mine["student_map"], grad=True)
    student = cells(student_map, size, head)
    close(student, mine["student"])
    loss = mse(student, teacher).mean()
    close(loss, mine["loss"])
    loss.backward()
    close_gradient(student_map, mine["grad_student_map"])


def test_v3(numbers, options):
    mine = under(numbers, "v3")
    student_map, pooled = tensor(mine["student_map"], grad=True), tensor(mine["student_pooled"], grad=True)
    teacher_map, teacher = tensor(mine["teacher_map"]), tensor(mine["teacher_pooled"]).flatten(1)
    student = head_of(under(mine, "head_global"))(pooled.flatten(1))
    close(unit(student), mine["student_global"])
    close(unit(teacher), mine["teacher_global"])
    queue = pushed(tensor(mine["queue_before"]), teacher)
    close(queue, mine["queue_after"])
    over_queue_B = queue_similarity(student, teacher, queue, options["v3_temperature_global"])
    close(over_queue_B.mean(), mine["loss_global"])
    size = tuple(teacher_map.shape[2:])
    student_cells = cells(student_map, size, head_of(under(mine, "head_local")))
    teacher_cells = cells(teacher_map, size)
    close(unit(student_cells), mine["student_local"])
    close(unit(teacher_cells), mine["teacher_local"])
    over_cells_B = cell_similarity(student_cells, teacher_cells, options["v3_temperature_local"])
    close(over_cells_B.mean(), mine["loss_local"])
    loss = (over_queue_B + options["v3_loss_local_weight"] * over_cells_B).mean()
    close(loss, mine["loss"])
    loss.backward()
    close_gradient(student_map, mine["grad_student_map"])
    close_gradient(pooled, mine["grad_student_pooled"])
