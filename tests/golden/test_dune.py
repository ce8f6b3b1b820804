"""DUNE's numbers: losses, dropping and own data, batch standardization, block projector, schedules."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recipe_numbers import close, close_gradient, loaded, tensor, under

from unic_pipe.pipeline.students.heads.block import BlockHead
from unic_pipe.stages.distill.losses.cosine import cosine
from unic_pipe.stages.distill.losses.smooth_l1 import smooth_l1
from unic_pipe.stages.distill.model.batch_standardization import BatchStandardization
from unic_pipe.stages.distill.model.loss import keep_teachers, loss_weights, total_loss
from unic_pipe.stages.distill.model.schedule import learning_rates
from unic_pipe.stages.distill.model.standardization import momenta

VARIANTS = ("none", "lowest_loss_p0", "lowest_loss_p0.25", "lowest_loss_p0.5", "lowest_loss_p1", "own_data")


@pytest.fixture(scope="module")
def numbers(recipes):
    return recipes("dune")


class Losses:
    """The losses of a batch against all teachers."""

    def __init__(self, numbers, weights=(0.5, 0.5)):
        options = json.loads(str(numbers["drop/options"]))
        self.teachers, tokens = options["teacher_order"], options["token_types"]
        self.students = {
            f"{teacher}/{token}": tensor(numbers[f"loss/student/{teacher}/{token}"], grad=True)
            for teacher in self.teachers
            for token in tokens[teacher]
        }
        self.terms = {}
        for name, student in self.students.items():
            target = tensor(numbers[f"loss/teacher/{name}"])
            self.terms[name] = cosine(student, target), smooth_l1(student, target)
        weighted = {name: weights[0] * cos_B + weights[1] * sl1_B for name, (cos_B, sl1_B) in self.terms.items()}
        per_teacher = [torch.stack([weighted[f"{t}/{k}"] for k in tokens[t]]).mean(0) for t in self.teachers]
        self.loss_BT = torch.stack(per_teacher, dim=1)


@pytest.mark.parametrize(("weights", "key"), [((0.5, 0.5), "per_teacher"), ((0.3, 0.9), "per_teacher_cos0.3_sl1_0.9")])
def test_loss_per_teacher(numbers, weights, key):
    losses = Losses(numbers, weights)
    for teacher, loss_B in zip(losses.teachers, losses.loss_BT.T, strict=True):
        close(loss_B, numbers[f"loss/{key}/{teacher}"])


def test_metrics(numbers):
    losses, expected = Losses(numbers), under(numbers, "loss/metric/loss")
    for name, (cos_B, sl1_B) in losses.terms.items():
        teacher, token = name.split("/")
        for kind, value in {"cos_": cos_B, "sl1_": sl1_B, "": (cos_B + sl1_B) / 2}.items():
            close(value.mean(), expected.pop(f"dist_{token}_{kind}{teacher}"))
    for teacher, loss_B in zip(losses.teachers, losses.loss_BT.T, strict=True):
        close(loss_B.mean(), expected.pop(f"dist_{teacher}"))
    assert not expected


@pytest.mark.parametrize("variant", [*VARIANTS, "own_plus_generic"])
def test_dropping(numbers, variant):
    losses, mine = Losses(numbers), under(numbers, f"drop/{variant}")
    options = json.loads(str(numbers["drop/options"]))["variants"]
    assert set(options) == {*VARIANTS, "own_plus_generic"}
    if options[variant]["method"] == "lowest_loss":
        keep_BT = keep_teachers(losses.loss_BT, tensor(mine["uniforms"]), options[variant]["p"])
    elif variant == "none":
        keep_BT = torch.ones_like(losses.loss_BT)
    else:
        rule = json.loads(str(numbers["rule/dataset_to_teacher"]))
        owners = [rule[dataset] for dataset in json.loads(str(numbers["loss/dataset_of_image"]))]
        generic = "dino2" if variant == "own_plus_generic" else None
        keep_BT = torch.tensor([[float(t.startswith(o) or o == generic) for t in losses.teachers] for o in owners])
    close(loss_weights(keep_BT), mine["coefficients"])
    for teacher, share in zip(losses.teachers, loss_weights(keep_BT).sum(0), strict=True):
        close(share, mine[f"coeff_sum/{teacher}"])
    loss = total_loss(losses.loss_BT, keep_BT)
    close(loss, mine["loss"])
    loss.backward()
    for name, student in losses.students.items():
        close_gradient(student, mine[f"grad_student/{name}"])


@pytest.mark.parametrize("token", ["cls", "patch"])
def test_batch_standardization(numbers, token):
    mine = under(numbers, f"norm/{token}")
    standardization = BatchStandardization({token: {"t": mine["in/0"].shape[-1]}}, torch.device("cpu"))
    for i, momentum in enumerate(json.loads(str(numbers["norm/options"]))["momentum"]):
        close(standardization("t", token, tensor(mine[f"in/{i}"])), mine[f"out/{i}"])
        standardization.update(momentum)
        for name, value_D in standardization.state()["t"][token].items():
            close(value_D, mine[f"{name}/{i}"].reshape(-1))
    close(standardization("t", token, tensor(mine[f"in/{i}"]), learn=False), mine["eval_out"])
    before = {name: value_D.clone() for name, value_D in standardization.state()["t"][token].items()}
    standardization.update(0.5)
    assert all(torch.equal(value, before[name]) for name, value in standardization.state()["t"][token].items())


def test_block_projectors(numbers):
    """In float64, because float32's rounding is nearly as large as the tolerance; and in float32, against that."""
    for case, options in json.loads(str(numbers["projector/options"])).items():
        mine, more = under(numbers, f"projector/{case}"), {}
        if "scale" in options:
            more["scale"] = options["scale"] or None
        head = BlockHead(
            options["input_dim"],
            options["output_dim"],
            heads=options["num_heads"],
            blocks=options["num_blocks"],
            qkv_bias=options["qkv_bias"],
            norm_affine=options.get("ln_affine", True),
            layer_scale=options.get("layerscale_init", 1e-4),
            **more,
        )
        loaded(head, under(mine, "state"))
        with torch.no_grad():
            single_BPE = head(tensor(mine["x"])[:, 0], tensor(mine["x"])[:, 1:])[1]
        x_BND = tensor(mine["x"]).double().requires_grad_()
        cls_BE, patch_BPE = head.double()(x_BND[:, 0], x_BND[:, 1:])
        torch.testing.assert_close(single_BPE.double(), patch_BPE, rtol=1e-5, atol=1e-5)
        close(cls_BE, mine["cls"])
        close(patch_BPE, mine["patch"])
        y_BNE = torch.cat([cls_BE[:, None], patch_BPE], dim=1)
        close(y_BNE, mine["y"])
        y_BNE.square().sum().backward()
        close_gradient(x_BND, mine["grad_x_of_sum_y2"])


def test_schedules(numbers):
    steps = len(numbers["schedule/lr"])
    np.testing.assert_allclose(momenta(1, len(numbers["schedule/tnorm_momentum"])), numbers["schedule/tnorm_momentum"])
    np.testing.assert_allclose(learning_rates(6e-4, 1e-6, steps, 1, int(0.2 * steps)), numbers["schedule/lr"])
