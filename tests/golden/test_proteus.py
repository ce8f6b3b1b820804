"""Proteus' numbers: three heads, three terms, masked cells of the whole batch."""

from __future__ import annotations

import pytest
import torch
from recipe_numbers import close, close_gradient, loaded, tensor, under

from unic_pipe.pipeline.students.heads.mlp import norm_linear
from unic_pipe.stages.distill.losses.masked_mse import masked_mse
from unic_pipe.stages.distill.losses.mse import mse, sequence_shares


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("proteus")


def terms(numbers, mask_BP, cells):
    """The leaves, and token, fea and patch loss per image."""
    inputs = {key: tensor(value, grad="student" in key) for key, value in under(numbers, "in").items()}
    heads = {}
    for name in ("token", "fea", "patch"):
        state = {key.removeprefix(f"{name}_head."): v for key, v in under(numbers, "state").items() if name in key}
        heads[name] = loaded(norm_linear(state["1.weight"].shape[1], len(state["1.weight"])), state)
    cls_share, patch_share = sequence_shares(inputs["teacher_patch"].shape[1])
    token_B = mse(heads["token"](inputs["student_cls"]), inputs["teacher_cls"])
    patches_B = mse(heads["fea"](inputs["student_patch"]), inputs["teacher_patch"])
    masked = heads["patch"](inputs["student_patch_of_masked_image"])
    masked_B = masked_mse(masked, inputs["teacher_patch"], mask_BP, cells)
    return inputs, {"token": token_B, "fea": cls_share * token_B + patch_share * patches_B, "patch": masked_B}


def test_terms(numbers):
    """One set with weights of 1, one with others."""
    mask_BP = tensor(numbers["in/mask"])
    inputs, found = terms(numbers, mask_BP, mask_BP.sum().item() / len(mask_BP))
    [weighted] = [key.split("/")[0] for key in numbers if key.startswith("out_lambda") and key.endswith("/loss")]
    for out, weights in {"out": (1, 1, 1), weighted: [float(x) for x in weighted.split("_")[2:]]}.items():
        parts = {name: w * found[name].mean() for w, name in zip(weights, ("token", "fea", "patch"), strict=True)}
        for name, value in parts.items():
            close(value, numbers[f"{out}/{name}_loss"])
        close(torch.stack([*parts.values()]).sum(), numbers[f"{out}/loss"])
    sum(loss_B.mean() for loss_B in found.values()).backward()
    for name, expected in under(numbers, "out/grad").items():
        close_gradient(inputs[name], expected)


def test_shares_of_a_batch_add_up(numbers):
    """With the number of masked cells of the whole, which differ from image to image."""
    mask_BP, target = tensor(numbers["in/mask"]), tensor(numbers["in/teacher_patch"])
    mask_BP[0, 1:], prediction = False, torch.zeros_like(target)
    cells = mask_BP.sum().item() / len(mask_BP)
    parts = [masked_mse(prediction[s], target[s], mask_BP[s], cells) for s in (slice(1), slice(1, None))]
    close(torch.cat(parts).mean(), (target[mask_BP] ** 2).mean().numpy())


def test_nothing_masked_is_no_loss(numbers):
    """The official code gives NaN."""
    assert torch.tensor(numbers["out_empty_mask/patch_loss"]).isnan()
    inputs, found = terms(numbers, torch.zeros_like(tensor(numbers["in/mask"])), 0.0)
    assert not found["patch"].any()
    found["patch"].mean().backward()
    assert not inputs["student_patch_of_masked_image"].grad.any()
