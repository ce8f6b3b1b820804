"""ND's numbers: class means, and the loss of direction and norm. Mixed centres are taken from the file: images are not
mixed here."""

from __future__ import annotations

import json

import numpy as np
from recipe_numbers import close, close_gradient, tensor

from unic_pipe.pipeline.cache.class_means import ClassMeans
from unic_pipe.stages.distill.losses.class_direction import class_direction


def test_class_means_and_losses(recipes):
    numbers = recipes("nd")
    features, labels = numbers["train/features"], numbers["train/labels"]
    expected = numbers["train/class_means_official_rounded"]
    decimals = json.loads(str(numbers["options"]))["rounding_decimals"]
    official, exact = ClassMeans(*expected.shape, decimals), ClassMeans(*expected.shape)
    for means in (official, exact):
        for rows in np.array_split(np.arange(len(labels)), 3):
            means.add(features[rows], labels[rows])
    np.testing.assert_allclose(official.means(), expected, rtol=0, atol=1e-12)
    by_class = [features[labels == c].astype(np.float64).mean(0) for c in range(len(expected))]
    np.testing.assert_allclose(exact.means(), by_class, rtol=1e-12)
    assert exact.count_C.tolist() == np.bincount(labels, minlength=len(expected)).tolist()
    centers, teacher = tensor(expected[numbers["labels"]]), tensor(numbers["teacher"])
    for factor in (key.removeprefix("loss_factor") for key in numbers if key.startswith("loss_factor")):
        student = tensor(numbers["student"], grad=True)
        loss = float(factor) * class_direction(student, teacher, centers).mean()
        close(loss, numbers[f"loss_factor{factor}"])
        loss.backward()
        close_gradient(student, numbers[f"grad_student_factor{factor}"])
    for name in json.loads(str(numbers["options"]))["mix"]:
        loss_B = class_direction(tensor(numbers["student"]), teacher, tensor(numbers[f"{name}/centers"]))
        close(loss_B.mean(), numbers[f"{name}/loss"])
