"""EUPE: heads and losses of two teachers, by the paper's equations."""

from __future__ import annotations

import json

import pytest
from recipe_numbers import close, close_gradient, loaded, tensor, under

from unic_pipe.pipeline.students.heads.mlp import norm_mlp
from unic_pipe.stages.distill.losses.cosine import cosine
from unic_pipe.stages.distill.losses.smooth_l1 import smooth_l1


def test_heads_and_losses(recipes):
    numbers = recipes("eupe")
    weights = json.loads(str(numbers["options"]))["patch"]
    teachers = sorted({key.split("/")[0] for key in numbers if "/" in key})
    total = 0.0
    for mine in (under(numbers, teacher) for teacher in teachers):
        tokens_BND = tensor(mine["student_tokens"], grad=True)
        inputs = {"cls": tokens_BND[:, 0], "patch": tokens_BND[:, 1:]}
        losses = {}
        for token, x in inputs.items():
            state = under(mine, f"head/{token}")
            hidden, width = state["0.weight"].shape
            head = loaded(norm_mlp(width, hidden, len(state["3.weight"]), bias=False), state)
            prediction, target = head(x), tensor(mine[f"teacher/{token}"])
            close(prediction, mine[f"out/{token}"])
            loss_B = cosine(prediction, target)
            if token == "patch":
                loss_B = weights["cosine"] * loss_B + weights["smooth_l1"] * smooth_l1(prediction, target)
            losses[token] = loss_B.mean()
            close(losses[token], mine[f"loss/{token}"])
        loss = losses["cls"] + losses["patch"]
        close(loss, mine["loss/total"])
        loss.backward()
        close_gradient(tokens_BND, mine["grad_student_tokens"])
        total += loss.item()
    assert total == pytest.approx(float(numbers["total"]), rel=1e-5)
