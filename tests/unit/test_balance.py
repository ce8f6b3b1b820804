"""Spread of targets and shares of the gradient: by their formulas, in parts, and where a teacher is missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unic_pipe.schemas.config import LossConfig
from unic_pipe.stages.distill.model.balance import Balance
from unic_pipe.stages.distill.model.loss import teacher_losses

SIZES = {("a", "cls"): 3, ("b", "cls"): 5}
LOSS = LossConfig.model_validate({"terms": ({"token": "cls", "kind": "cosine"},)})


def seen(x_BD: Tensor, heads: dict[str, Tensor], targets: dict[str, Tensor], parts: int = 1) -> dict[str, float]:
    """What is told of a batch of cls tokens and heads without bias (E, D), seen in parts; b is learned from by half."""
    balance = Balance(SIZES, torch.device("cpu"))  # type: ignore[arg-type]
    keep_BT = torch.ones(len(x_BD), 2)
    keep_BT[::2, 1] = 0
    for rows in torch.arange(len(x_BD)).chunk(parts):
        tokens = x_BD[rows].requires_grad_()
        mine = {teacher: target[rows] for teacher, target in targets.items()}
        for teacher, target in mine.items():
            balance.see_targets(teacher, "cls", target)
        balance.see_tokens([tokens])
        losses = teacher_losses({"cls": {t: tokens @ heads[t].T for t in mine}}, {"cls": mine}, LOSS)
        balance.read_gradients(losses, keep_BT[rows][:, : len(mine)])
    return balance.columns(None)


def made() -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(0)
    heads = {t: torch.randn(size, 4, generator=drawn) for (t, _), size in SIZES.items()}
    targets = {t: torch.randn(6, size, generator=drawn) for (t, _), size in SIZES.items()}
    return torch.randn(6, 4, generator=drawn), heads, targets


def test_the_gradient_is_that_of_what_the_student_gives_and_knows_no_scale_of_cosines() -> None:
    x_BD, heads, targets = made()
    told = seen(x_BD, heads, targets)
    norms = {}
    for teacher, target in targets.items():
        tokens = x_BD.clone().requires_grad_()
        cosine_B = torch.nn.functional.cosine_similarity(tokens @ heads[teacher].T, target, dim=1)
        (-(cosine_B if teacher == "a" else cosine_B[1::2]).sum()).backward()
        assert tokens.grad is not None
        norms[teacher] = float(tokens.grad.norm())
    assert told["a/gradient"] == pytest.approx(norms["a"] / (norms["a"] + norms["b"]), rel=1e-5)
    assert told["a/gradient"] + told["b/gradient"] == pytest.approx(1)
    larger = seen(x_BD, heads | {"b": 100 * heads["b"]}, targets | {"b": 100 * targets["b"]})
    assert larger["b/gradient"] == pytest.approx(told["b/gradient"], rel=1e-5)
    assert larger["b/cls/spread"] == pytest.approx(100 * told["b/cls/spread"], rel=1e-5)


def test_parts_of_a_batch_tell_what_the_batch_tells() -> None:
    x_BD, heads, targets = made()
    whole = seen(x_BD, heads, targets)
    assert whole["a/cls/spread"] == pytest.approx(float(targets["a"].var(0).mean().sqrt()), rel=1e-5)
    assert seen(x_BD, heads, targets, parts=3) == pytest.approx(whole, rel=1e-4)


def test_what_was_not_seen_is_not_told() -> None:
    x_BD, heads, targets = made()
    told = seen(x_BD, heads, {"a": targets["a"]})
    assert told.keys() == {"a/cls/spread", "a/gradient", "b/gradient"}
    assert (told["a/gradient"], told["b/gradient"]) == (1, 0)
    assert Balance(SIZES, torch.device("cpu")).columns(lambda x: x) == {}  # type: ignore[arg-type]
