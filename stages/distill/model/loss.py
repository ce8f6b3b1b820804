"""A batch's loss: terms per image and teacher, and the balance that makes one number of them.

The loss of UNIC (arXiv 2408.05088, sections 3.1 and 3.3) is one choice of terms and of a balance; the kinds of terms are
`stages.distill.losses`.

Shapes: B images, P patch tokens, E dimension of a teacher, T teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from unic_pipe.schemas.losses import KINDS, LossConfig, TokenType

Predictions = Mapping[TokenType, Mapping[str, Tensor]]
"""By token type and teacher: cls (B, E), patch (B, P, E)."""
Dispersions = Mapping[tuple[str, TokenType], float]
"""Mean squared angle of a teacher's tokens to their mean direction, in radians²."""


@dataclass(frozen=True)
class TeacherLosses:
    """Every teacher's loss of every image, and the terms that it was made from."""

    teachers: tuple[str, ...]
    loss_BT: Tensor
    terms: dict[tuple[str, TokenType, str], Tensor]
    """By teacher, token type and kind, (B,)."""


@cache
def kind_function(kind: str) -> Callable[..., Tensor]:
    """The code of a kind of term."""
    module, _, name = KINDS[kind].code.partition(":")
    place = f"unic_pipe.stages.distill.losses{module}" if module.startswith(".") else module
    found: Callable[..., Tensor] = getattr(import_module(place), name)
    return found


def teacher_losses(
    predictions: Predictions, targets: Predictions, loss: LossConfig, dispersions: Dispersions | None = None
) -> TeacherLosses:
    """Loss per image and teacher: the mean over the targets' token types of the sums of its terms.

    Teachers that have no term of these token types are left out. `dispersions`: for kinds that need them.
    """
    teachers = tuple(dict.fromkeys(teacher for token in predictions for teacher in predictions[token]))
    terms: dict[tuple[str, TokenType, str], Tensor] = {}
    columns: dict[str, Tensor] = {}
    for teacher in teachers:
        sums = []
        for token, weights in loss.terms_of(teacher).items():
            if teacher not in predictions.get(token, {}) or teacher not in targets.get(token, {}):
                continue
            both = predictions[token][teacher].float(), targets[token][teacher]
            for kind in weights:
                known: dict[str, Any] = {}
                if KINDS[kind].needs == "dispersion":
                    assert dispersions is not None, "computed when training starts"
                    known["dispersion"] = dispersions[teacher, token]
                terms[teacher, token, kind] = kind_function(kind)(*both, **known)
            weighted = [weight * terms[teacher, token, kind] for kind, weight in weights.items()]
            sums.append(sum(weighted[1:], weighted[0]))
        if sums:
            columns[teacher] = torch.stack(sums).mean(0)
    return TeacherLosses(tuple(columns), torch.stack(list(columns.values()), dim=1), terms)


def keep_teachers(loss_BT: Tensor, uniforms_BT: Tensor, probability: float) -> Tensor:
    """Which teachers an image keeps, (B, T) in {0, 1}, float32.

    The teacher with the highest loss is always kept (the first of equals); each other is dropped with `probability`,
    decided by the given uniform numbers.
    """
    hardest_B1 = loss_BT.detach().argmax(dim=1, keepdim=True)
    keep_BT = uniforms_BT >= probability
    return keep_BT.scatter(1, hardest_B1, True).to(torch.float32)


def kept(loss: LossConfig, loss_BT: Tensor, uniforms_BT: Tensor, own_BT: Tensor | None) -> Tensor:
    """What a training batch learns from, (B, T) in {0, 1}, by the balance of its losses.

    `own_BT`: which teachers are for an image of its dataset, with `balance: own_data`.
    """
    if own_BT is not None:
        return own_BT
    return (
        keep_teachers(loss_BT, uniforms_BT, loss.drop_probability)
        if loss.balance == "dropping"
        else torch.ones_like(loss_BT)
    )


def entries(loss: LossConfig, keep_BT: Tensor) -> Tensor:
    """What the sum of a batch's losses is divided by, a scalar: the losses kept, or for the sum over teachers its images."""
    return keep_BT.new_tensor(float(len(keep_BT))) if loss.balance == "sum" else keep_BT.sum()


def loss_weights(keep_BT: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Weights of the losses, (B, T): kept entries share 1 equally over the batch.

    `count`: divide by this number instead of the entries kept. Shares of a batch (other processes', micro-batches)
    agree on one, and their sum is corrected once all entries are counted: normalising each share by itself would
    weigh images of shares that dropped more teachers more. Where nothing is kept, nothing has a weight.
    """
    divisor = keep_BT.sum() if count is None else count
    return keep_BT / (divisor.clamp(min=1) if isinstance(divisor, Tensor) else divisor)


def total_loss(loss_BT: Tensor, keep_BT: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The scalar loss of a batch, or one share's summand of it; `count` as for `loss_weights`."""
    return (loss_weights(keep_BT, count) * loss_BT).sum()
