"""The angle loss: worked out by hand, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipe_numbers import close, tensor, under

from unic_pipe.pipeline.cache.directions import Dispersion, MeanDirection
from unic_pipe.stages.distill.losses.angle import angle, angles


def test_angle_loss(recipes):
    numbers = recipes("radio_angle")
    total = 0.0
    for mine in (under(numbers, teacher) for teacher in sorted({key.split("/")[0] for key in numbers if "/" in key})):
        pieces = np.array_split(mine["calibration"], 3)
        mean = MeanDirection(mine["calibration"].shape[1])
        for piece_MD in pieces:
            mean.add(piece_MD)
        close(mean.direction(), mine["mean_direction"])
        spread = Dispersion(mean.direction())
        for piece_MD in pieces:
            spread.add(piece_MD)
        assert spread.squared() == pytest.approx(float(mine["dispersion_squared"]), rel=1e-6)
        student, teacher = tensor(mine["student"]), tensor(mine["teacher"])
        close(angles(student, teacher), mine["angle"])
        loss = angle(student, teacher, spread.squared()).mean()
        close(loss, mine["loss"])
        total += loss.item()
    assert total == pytest.approx(float(numbers["total"]), rel=1e-5)


def test_equal_and_opposite_vectors_have_finite_gradients():
    """Also where the angle is so small that its cosine is 1 in float32."""
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    prediction = target * torch.tensor([[1.0], [2.0], [-1.0], [1.0]])
    prediction[3, 0] += 1e-4
    prediction.requires_grad_()
    found = angles(prediction, target)
    assert found[:2].tolist() == pytest.approx([0, 0], abs=2e-7)
    assert found[2].item() == pytest.approx(np.pi, abs=1e-6)
    length = np.linalg.norm(target[3].numpy())
    assert found[3].item() == pytest.approx(1e-4 * np.linalg.norm(target[3, 1:].numpy()) / length**2, rel=1e-2)
    angle(prediction, target, 0.5).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
