"""The ladder's time against that of its matrix products, which are what it has to cost.

Shapes: N tokens of a batch, D student width, G hidden units of a block (of all teachers), H hidden units of a teacher
(of all blocks), E teacher dimension, K and M as in a product (N, K) × (K, M).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from unic_pipe.pipeline.students.ladder import Ladder, TokenLadder
from unic_pipe.schemas.config import TokenType
from unic_pipe.stages.distill.model.distiller import Distiller


class Operands(NamedTuple):
    """Input, weight and output of one linear layer."""

    x_NK: Tensor
    weight_MK: Tensor
    y_NM: Tensor


def ladder_step(model: Distiller, inputs: Mapping[TokenType, Sequence[Tensor]]) -> None:
    """Forward and backward of the ladder on the outputs of its blocks, to its parameters and to these."""
    with model.autocast():
        predictions = model.ladder(inputs["cls"], inputs["patch"])
    found = [x for by_teacher in predictions.values() for x in by_teacher.values()]
    torch.autograd.backward(found, [x.detach() for x in found])
    for x in [*model.ladder.parameters(), *inputs["cls"], *inputs["patch"]]:
        x.grad = None


@torch.no_grad()
def ladder_operands(ladder: Ladder, inputs: Mapping[TokenType, Sequence[Tensor]]) -> list[Operands]:
    """One entry for every linear layer: all teachers' first layers of a block, and a teacher's second layers."""
    found: list[Operands] = []
    for token, x_LxD in inputs.items():
        if token not in ladder.heads:
            continue
        head = cast(TokenLadder, ladder.heads[token])
        for layer, x in zip(head.first, x_LxD, strict=True):
            found.append(_operands(x.detach().flatten(0, -2), cast(Tensor, layer.weight)))
        for weight_EH in head.second:
            x_NH = torch.randn(found[-1].x_NK.shape[0], weight_EH.shape[1], device=weight_EH.device)
            found.append(_operands(x_NH.to(x_LxD[0].dtype), weight_EH))
    return found


def _operands(x_NK: Tensor, weight_MK: Tensor) -> Operands:
    weight_MK = weight_MK.detach().to(x_NK.dtype)
    return Operands(x_NK, weight_MK, torch.randn(len(x_NK), len(weight_MK), device=x_NK.device).to(x_NK.dtype))


@torch.no_grad()
def multiply(operands: Sequence[Operands]) -> None:
    """The three products of every layer's forward and backward pass."""
    for x_NK, weight_MK, y_NM in operands:
        _ = x_NK @ weight_MK.T
        _ = y_NM @ weight_MK
        _ = y_NM.T @ x_NK
