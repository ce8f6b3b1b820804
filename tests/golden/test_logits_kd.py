"""Losses against a teacher's logits: DeiT's, Hinton's, DKD, ScaleKD's."""

from __future__ import annotations

import json
import re

import pytest
from recipe_numbers import close, close_gradient, tensor
from torch.nn import functional as F

from unic_pipe.stages.distill.losses.cross_entropy import hard_cross_entropy, soft_cross_entropy
from unic_pipe.stages.distill.losses.kl import decoupled_kl, kl


@pytest.fixture
def numbers(recipes):
    return recipes("logits_kd")


def cases(numbers, start: str):
    """Names with the numbers in them."""
    names = {key.split("/")[0] for key in numbers if key.startswith(start)}
    assert names
    return {name: [float(x) for x in re.findall(r"(?<=[a-zA-Z])[\d.]+", name)] for name in sorted(names)}


def compare(numbers, name, loss, **inputs):
    close(loss, numbers[f"{name}/loss"])
    loss.backward()
    for key, x in inputs.items():
        if f"{name}/grad_{key}" in numbers:
            close_gradient(x, numbers[f"{name}/grad_{key}"])
        else:
            assert x.grad is None


@pytest.fixture
def sides(numbers):
    student, teacher = tensor(numbers["student_logits"], grad=True), tensor(numbers["teacher_logits"])
    return student, teacher, tensor(numbers["labels"])


def test_deit(numbers):
    teacher, labels = tensor(numbers["teacher_logits"]), tensor(numbers["labels"])
    for name, options in json.loads(str(numbers["options"])).items():
        student = tensor(numbers["student_logits"], grad=True)
        distilled = tensor(numbers["student_logits_dist_token"], grad=True)
        loss_B = F.cross_entropy(student, labels, reduction="none")
        if options["type"] == "soft":
            extra_B = kl(distilled, teacher, options["tau"], over_classes=True)
            loss_B = (1 - options["alpha"]) * loss_B + options["alpha"] * extra_B
        elif options["type"] == "hard":
            loss_B = (1 - options["alpha"]) * loss_B + options["alpha"] * hard_cross_entropy(distilled, teacher)
        inputs = {"student_logits": student, "student_logits_dist_token": distilled}
        compare(numbers, name, loss_B.mean(), **inputs)


def test_hinton(numbers, sides):
    for name, (temperature, factor) in cases(numbers, "hinton_batchmean").items():
        student = tensor(numbers["student_logits"], grad=True)
        loss_B = factor * kl(student, sides[1], temperature)
        compare(numbers, name, loss_B.mean(), student_logits=student)


def test_decoupled(numbers, sides):
    for name, (alpha, beta, temperature) in cases(numbers, "dkd").items():
        student = tensor(numbers["student_logits"], grad=True)
        loss_B = decoupled_kl(student, *sides[1:], alpha=alpha, beta=beta, temperature=temperature)
        compare(numbers, name, loss_B.mean(), student_logits=student)


def test_scalekd(numbers, sides):
    for name, (temperature, alpha) in cases(numbers, "scalekd").items():
        student = tensor(numbers["student_logits"], grad=True)
        loss_B = alpha * soft_cross_entropy(student, sides[1], temperature)
        compare(numbers, name, loss_B.mean(), student_logits=student)
        assert float(numbers[f"{name}/weight_of_ce"]) == 1 - alpha
