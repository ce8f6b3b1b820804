"""Theia's numbers: statistics, standardization and losses. What the official code makes of features that are bfloat16
themselves (`out_bf16_input`) is left out: ours are decoded to float32."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recipe_numbers import close, close_gradient, tensor, under

from unic_pipe.pipeline.cache.moments import moments_of
from unic_pipe.pipeline.cache.theia import theia_standardization, to_bfloat16
from unic_pipe.schemas.features import TokenStatistics
from unic_pipe.stages.distill.losses.flat_cosine import flat_cosine
from unic_pipe.stages.distill.losses.mse import mse
from unic_pipe.stages.distill.losses.smooth_l1 import smooth_l1

KINDS = {"mse": mse, "cos": flat_cosine, "l1": smooth_l1}


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("theia")


@pytest.fixture(scope="module")
def teachers(numbers) -> list[str]:
    return list(json.loads(str(numbers["options"]))["shapes"])


def test_standardization(numbers, teachers):
    for teacher in teachers:
        features_NPD = numbers[f"stats/features/{teacher}"]
        found = moments_of(features_NPD.reshape(-1, features_NPD.shape[-1]))
        close(found.mean_D, numbers[f"stats/mean_file/{teacher}"])
        close(np.sqrt(found.m2_D / (found.count - 1)), numbers[f"stats/var_file/{teacher}"])
        mean, m2 = tuple(found.mean_D.tolist()), tuple(found.m2_D.tolist())
        mean_D, std_D = theia_standardization(TokenStatistics(count=found.count, mean=mean, m2=m2))
        np.testing.assert_array_equal(mean_D, numbers[f"stats/mean_loaded_bf16/{teacher}"])
        np.testing.assert_array_equal(std_D, numbers[f"stats/var_loaded_bf16/{teacher}"])
        close((numbers[f"norm/in/{teacher}"] - mean_D) / std_D, numbers[f"norm/out/{teacher}"])


def test_losses(numbers, teachers):
    predictions = {teacher: tensor(numbers[f"loss/pred/{teacher}"], grad=True) for teacher in teachers}
    losses = {
        name: {t: kind(predictions[t], tensor(numbers[f"norm/out/{t}"])) for t in teachers}
        for name, kind in KINDS.items()
    }
    for name, by_teacher in losses.items():
        for teacher, loss_B in by_teacher.items():
            close(loss_B.mean(), numbers[f"loss/{name}_per_model/{teacher}"])
        close(torch.stack([*by_teacher.values()]).mean(), numbers[f"loss/{name}_loss"])
    weights = json.loads(str(numbers["options"]))["main"]
    main_BT = torch.stack(
        [weights["cos"] * losses["cos"][t] + weights["smooth_l1"] * losses["l1"][t] for t in teachers], dim=1
    )
    close(main_BT.mean(), numbers["loss/main_cos_l1"])
    main_BT.mean().backward()
    expected = under(numbers, "loss/grad_pred_of_main")
    for teacher in teachers:
        close_gradient(predictions[teacher], expected[teacher])


def test_rounding_is_that_of_bfloat16():
    values = np.random.default_rng(0).standard_normal(999) * 10.0 ** np.linspace(-33, 33, 999)
    values[:4] = 0.0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)  # halfway: to the even one
    np.testing.assert_array_equal(to_bfloat16(values), tensor(values).float().bfloat16().double().numpy())


def test_a_constant_dimension_has_finite_targets():
    mean_D, std_D = theia_standardization(TokenStatistics(count=9, mean=(3.0, 1.0), m2=(0.0, 2.0)))
    assert mean_D[0] == 3.0
    assert 0 < std_D[0] < 2e-6
