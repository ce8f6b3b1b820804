"""Noise of the student's colours: what changes, that it is drawn anew, and that a training resumes to the bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_world import STUDENT, World, assert_same_student
from made_up import TINY, made_up
from pydantic import ValidationError

from unic_pipe.pipeline.samples.draws import Purpose, uniforms
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.stages.distill.data.noise import LANES, noisy

IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_colours_change_by_the_draws_alone() -> None:
    middle_B3 = torch.full((4, LANES), 0.5)
    torch.testing.assert_close(noisy(IMAGES, middle_B3, 0.4), IMAGES.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(noisy(IMAGES, torch.rand(4, LANES), 0.0), IMAGES.float(), atol=1e-3, rtol=0)
    darkest = noisy(IMAGES, torch.tensor([[0.0, 0.5, 0.5]] * 4), 0.4)
    torch.testing.assert_close(darkest, IMAGES * 0.6, atol=1e-3, rtol=0)
    flat = noisy(IMAGES, torch.tensor([[0.5, 0.0, 0.5]] * 4), 1.0)
    assert flat.std(dim=(1, 2, 3)).max() < 1e-3
    grey = noisy(IMAGES, torch.tensor([[0.5, 0.5, 0.0]] * 4), 1.0)
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-3
    strong = noisy(IMAGES, torch.ones(4, LANES), 1.0)
    assert 0 <= strong.min() <= strong.max() <= 255


def test_a_student_sees_other_colours_in_another_epoch_and_in_training_only() -> None:
    config = StudentConfig.model_validate_json(json.dumps({**TINY, "noise": 0.5}))
    model, batch = made_up(config)
    epochs = [torch.from_numpy(uniforms(0, Purpose.NOISE, e, batch.plan.rows_B, LANES)).float() for e in (0, 1, 0)]
    one, other, again = (model(replace(batch, noise_B3=draws_B3))[0].loss_BT for draws_B3 in epochs)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    plain, _ = made_up(config.model_copy(update={"noise": 0.0}))
    validated = [m(batch, training=False)[0].loss_BT for m in (model, plain)]
    assert torch.equal(*validated)


def test_a_resumed_training_has_the_same_bits(world: World, tmp_path: Any) -> None:
    config = STUDENT.model_copy(
        update={"noise": 0.4, "optimizer": STUDENT.optimizer.model_copy(update={"epochs": 1, "lr": 0.05})}
    )
    other = World(shutil.copytree(world.folder, tmp_path / "other", symlinks=True))
    assert world.distill(config)
    assert not other.distill(config, stop_after=2)
    assert other.distill(config)
    assert_same_student(world, other)


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_is_a_fraction(strength: float) -> None:
    with pytest.raises(ValidationError, match="noise"):
        StudentConfig.model_validate_json(json.dumps({**TINY, "noise": strength}))
