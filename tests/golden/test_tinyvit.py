"""TinyViT's stored logits: top-K probabilities in float16, a dense target, and soft cross-entropy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recipe_numbers import close, close_gradient, tensor

from unic_pipe.stages.distill.losses.cross_entropy import against, soft_cross_entropy
from unic_pipe.stages.distill.losses.top_k import dense_target, top_k_target


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("tinyvit")


@pytest.fixture(scope="module")
def options(numbers):
    return json.loads(str(numbers["options"]))


def test_what_is_stored(numbers, options):
    k, classes = options["topk"], options["num_classes"]
    record = np.dtype([("seed", "<i4"), ("indices", "<i2", k), ("values", "<f2", k)])
    stored = np.ascontiguousarray(numbers["stored/bytes"]).view(record)[:, 0]
    np.testing.assert_array_equal(stored["seed"], numbers["seeds"])
    np.testing.assert_array_equal(stored["indices"], numbers["stored/indices"])
    values_BK, classes_BK = tensor(stored["values"]), tensor(stored["indices"])
    close(dense_target(values_BK, classes_BK, classes, negative_tail=True), numbers["dense_target"])
    close(dense_target(values_BK, classes_BK, classes), numbers["dense_target"].clip(min=0))
    assert numbers["dense_target"][options["negative_tail_row"]].min() < 0


def test_targets_and_losses(numbers, options):
    teacher, student = tensor(numbers["teacher_logits"]), tensor(numbers["student_logits"], grad=True)
    close(top_k_target(teacher, options["topk"], official=True), numbers["dense_target"])
    loss = soft_cross_entropy(student, teacher, top_k=options["topk"], official=True).mean()
    close(loss, numbers["loss"])
    loss.backward()
    close_gradient(student, numbers["grad_student_logits"])
    close(soft_cross_entropy(student, teacher).mean(), numbers["loss_with_full_teacher"])


def test_by_default_nothing_is_rounded_and_no_target_is_negative(numbers, options):
    teacher, student = tensor(numbers["teacher_logits"]), tensor(numbers["student_logits"])
    target = top_k_target(teacher, options["topk"])
    assert target.min() >= 0
    close(target.sum(1), np.ones(len(target)))
    close(soft_cross_entropy(student, teacher, top_k=options["topk"]), against(student, target).numpy())


def test_all_classes_are_the_teacher_itself(numbers, options):
    teacher = tensor(numbers["teacher_logits"])
    close(top_k_target(teacher, options["num_classes"]), torch.softmax(teacher, -1).numpy())
