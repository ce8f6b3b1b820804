"""Losses of images of which the student does not see all patches: what is masked, how it is counted, what leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import define, features
from distill_world import STUDENT, World, assert_same_student, student_folder
from made_up import TINY, made_up
from pydantic import ValidationError
from safetensors.torch import load_file

from unic_pipe.pipeline.samples.draws import Purpose, uniforms
from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.distill.data.masks import masked_cells
from unic_pipe.stages.distill.data.targets import RawTargets
from unic_pipe.stages.distill.model.distiller import Distiller

PROTEUS: dict[str, Any] = {
    "terms": [
        {"token": token, "kind": kind} for token, kind in (("cls", "mse"), ("patch", "mse"), ("patch", "masked_mse"))
    ],
    "balance": "sum",
    "standardize": "none",
}
HEADS = {"kind": "norm_linear"}


def student(**changes: Any) -> StudentConfig:
    return StudentConfig.model_validate_json(json.dumps({**TINY, "loss": PROTEUS, "ladder": HEADS, **changes}))


def batch_of(config: StudentConfig) -> tuple[Distiller, Any]:
    """A model and a batch of eight images whose masks were drawn, and counted."""
    model, batch = made_up(config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"batch": 8})}))
    draws_BL = torch.from_numpy(uniforms(0, Purpose.MASK, 0, batch.plan.rows_B, 1 + model.cells)).float()
    plan = replace(batch.plan, masked=int((draws_BL[:, 0] < 0.5).sum()))
    return model, replace(batch, plan=plan, mask_BL=draws_BL)


def test_half_of_the_patches_of_about_half_of_the_images_are_masked() -> None:
    mask_BP = masked_cells(torch.rand(1000, 17, generator=torch.Generator().manual_seed(0)), 16)
    assert set(mask_BP.sum(1).tolist()) == {0, 8}
    assert 400 < mask_BP.any(1).sum() < 600
    assert mask_BP.float().mean(0).std() < 0.03


def test_the_student_does_not_see_what_is_masked() -> None:
    model, batch = batch_of(student())
    mask_BP = masked_cells(batch.mask_BL, 4)
    pixels_BHW = mask_BP.view(8, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)
    other = replace(batch, images={16: batch.images[16].masked_fill(pixels_BHW[:, None], 0)})
    found = [model(each)[0].terms["a", "patch", "masked_mse"] for each in (batch, other)]
    torch.testing.assert_close(*found)
    assert torch.equal(found[0] > 0, mask_BP.any(1))
    torch.nn.init.normal_(model.ladder.mask_token)
    assert not torch.allclose(model(batch)[0].terms["a", "patch", "masked_mse"], found[0])


def test_the_mean_is_over_all_masked_cells_of_the_global_batch() -> None:
    """However it is shared out, and also where a share has none."""
    model, batch = batch_of(student())
    whole = model(batch)[0].terms["a", "patch", "masked_mse"]
    order = batch.mask_BL[:, 0].argsort()
    parts = []
    for rows in (order[:2], order[2:7], order[7:]):
        targets = {
            pair: RawTargets(raw.values[rows], raw.block_B[rows], raw.affines) for pair, raw in batch.targets.items()
        }
        plan = replace(batch.plan, rows_B=batch.plan.rows_B[rows.numpy()])
        part = replace(
            batch, plan=plan, images={16: batch.images[16][rows]}, targets=targets, mask_BL=batch.mask_BL[rows]
        )
        part = replace(part, drop_teacher_BT=batch.drop_teacher_BT[rows], drop_path_BU=batch.drop_path_BU[rows])
        losses, _, total = model(part, count=8.0)
        total.backward()
        parts.append(losses.terms["a", "patch", "masked_mse"])
    torch.testing.assert_close(torch.cat(parts), whole[order])
    assert all(p.grad is not None for p in model.ladder.parameters())
    none = replace(batch, plan=replace(batch.plan, masked=0), mask_BL=torch.ones_like(batch.mask_BL))
    assert not model(none)[0].terms["a", "patch", "masked_mse"].any()


def test_validation_masks_nothing() -> None:
    model, batch = batch_of(student())
    losses, _, _ = model(replace(batch, mask_BL=None), training=False)
    assert set(losses.terms) == {(t, token, "mse") for t in "ab" for token in ("cls", "patch")}


def test_token_and_masked_heads_stay_behind_and_a_resumed_training_has_the_same_bits(
    world: World, tmp_path: Any
) -> None:
    changes = {
        "loss": LossConfig.model_validate_json(json.dumps(PROTEUS)),
        "ladder": LadderConfig(kind="norm_linear"),
        "optimizer": STUDENT.optimizer.model_copy(update={"epochs": 1, "lr": 0.05}),
    }
    config = STUDENT.model_copy(update=changes)
    other = World(shutil.copytree(world.folder, tmp_path / "other", symlinks=True))
    assert world.distill(config, validation=True)
    assert not other.distill(config, stop_after=2, validation=True)
    assert other.distill(config, validation=True)
    assert_same_student(world, other)
    export = student_folder(world) / "export"
    assert not any("mask" in key for file in export.glob("*.safetensors") for key in load_file(file))
    state = torch.load(sorted((student_folder(world) / "checkpoints").glob("*.pt"))[-1], weights_only=True)["state"]
    assert state["ladder"]["mask_token"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ladder": {}}, "heads on single tokens"),
        ({"ladder": {"kind": "block"}}, "heads on single tokens"),
        ({"loss": {**PROTEUS, "grid": "larger"}}, "masked on the student's grid"),
        ({"dataset": {"a": 1.0, "b": 1.0}}, "masked cells are counted over one dataset"),
    ],
)
def test_what_cannot_be_masked_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        student(**changes)
    assert words in str(caught.value)


def test_heads_that_leave_are_trained() -> None:
    alone = {**PROTEUS, "terms": PROTEUS["terms"][::2]}
    with pytest.raises(UserError, match="Patches of teacher a are learned of masked images alone"):
        define({"loss": LossConfig.model_validate_json(json.dumps(alone)), "ladder": HEADS}, {"a": features()})


def test_other_networks_have_nothing_to_mask() -> None:
    config = student(architecture="resnet10t", model_args={}, image_size=64)
    with pytest.raises(UserError, match="ResNet is no vision transformer"):
        made_up(config)
