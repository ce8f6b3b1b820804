"""DINOv3's Gram loss. Over a batch it is that of one image with all of the tokens; training refuses that form."""

from __future__ import annotations

import json

import pytest
import torch
from recipe_numbers import close, close_gradient, tensor

from unic_pipe.stages.distill.losses.gram import gram


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("dinov3_gram")


def negatives(options) -> str:
    if options["remove_neg"]:
        return "remove"
    return "remove_teacher" if options["remove_only_teacher_neg"] else "keep"


def test_every_variant(numbers):
    for name, options in json.loads(str(numbers["options"]))["variants"].items():
        student, teacher = tensor(numbers["student"], grad=True), tensor(numbers["teacher"])
        sides = (
            (student, teacher) if options["img_level"] else (student.flatten(0, 1)[None], teacher.flatten(0, 1)[None])
        )
        loss_B = gram(*sides, unit=options["apply_norm"], negatives=negatives(options), official=True)
        assert loss_B.shape == (len(sides[0]),)
        close(loss_B.mean(), numbers[f"{name}/loss"])
        loss_B.mean().backward()
        close_gradient(student, numbers[f"{name}/grad_student"])


def test_bfloat16_is_computed_in_float32(numbers):
    defaults = json.loads(str(numbers["options"]))["class_defaults"]
    sides = [tensor(numbers[side]).bfloat16() for side in ("student", "teacher")]
    loss_B = gram(*sides, unit=defaults["apply_norm"], negatives=negatives(defaults))
    assert loss_B.dtype == torch.float32
    close(loss_B.mean(), numbers["defaults_bf16_inputs/loss"])


def test_where_both_are_negative_there_is_no_loss(numbers):
    """What the official code means to do, and does not."""
    student, teacher = tensor(numbers["student"]), tensor(numbers["teacher"])
    s, t = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (student, teacher))
    s, t = s @ s.mT, t @ t.mT
    assert ((s < 0) & (t < 0)).any()
    expected_B = torch.where(t >= 0, (s - t) ** 2, torch.where(s >= 0, s**2, 0.0)).mean((1, 2))
    close(gram(student, teacher, negatives="remove_teacher"), expected_B.numpy())
