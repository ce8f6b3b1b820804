"""A batch's loss: terms per image and teacher, and the balance that makes one number of them.

The loss of UNIC (arXiv 2408.05088, sections 3.1 and 3.3) is one choice of terms and of a balance; the kinds of terms are
`stages.distill.losses`.

In a mixture of datasets a teacher may have targets for M of the images alone; where it has none, it takes no part.

Shapes: B images, M of them with a target, P patch tokens, E dimension of a teacher, T teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unic_pipe.schemas.losses import KINDS, LossConfig, TokenType

Predictions = Mapping[TokenType, Mapping[str, Tensor]]
"""By token type and teacher: cls (B, E), patch (B, P, E); targets (M, ...)."""


@dataclass(frozen=True)
class TeacherLosses:
    """Every teacher's loss of every image, and the terms that it was made from."""

    teachers: tuple[str, ...]
    loss_BT: Tensor
    """0 where a teacher has no target."""
    terms: dict[tuple[str, TokenType, str], Tensor]
    """By teacher that has targets, token type and kind, (M,)."""
    there_BT: Tensor | None = None
    """Where a teacher has a target, bool; None: everywhere."""

    def images(self, column: str) -> int:
        """How many images a column of the metrics is the mean of: a teacher's, those for which it has targets."""
        teacher = column.partition("/")[0] if "/" in column else None
        own = [len(term_M) for (name, _, _), term_M in self.terms.items() if name == teacher]
        return len(self.loss_BT) if teacher is None else max(own, default=0)


class Masked(NamedTuple):
    """What a student says of images of which it did not see all patches."""

    prediction: Tensor
    """(B, P, E)."""
    mask_BP: Tensor
    cells: float
    """Masked cells per image of the global batch."""


@cache
def kind_function(kind: str) -> Callable[..., Tensor]:
    """The code of a kind of term."""
    module, _, name = KINDS[kind].code.partition(":")
    place = f"unic_pipe.stages.distill.losses{module}" if module.startswith(".") else module
    found: Callable[..., Tensor] = getattr(import_module(place), name)
    return found


def teacher_losses(
    predictions: Predictions,
    targets: Predictions,
    loss: LossConfig,
    known: Mapping[tuple[str, TokenType], Mapping[str, Any]] = {},
    rows: Mapping[str, Tensor] = {},
) -> TeacherLosses:
    """Loss per image and teacher: the mean over the targets' token types of the sums of its terms.

    Teachers that have no term of these token types are left out. `known`: by teacher and token type, what kinds need, by
    the name in `Kind.needs`. `rows`: by teacher, the images (M, int64, maybe none) that its targets are of, where those are
    not all.
    """
    terms: dict[tuple[str, TokenType, str], Tensor] = {}
    means: dict[str, Tensor] = {}
    teachers = tuple(dict.fromkeys(teacher for token in predictions for teacher in predictions[token]))
    for teacher in teachers:
        sums = []
        for token, weights in loss.terms_of(teacher).items():
            if teacher not in predictions.get(token, {}) or teacher not in targets.get(token, {}):
                continue
            both = _of_rows(predictions[token][teacher], rows.get(teacher)), targets[token][teacher]
            given = known.get((teacher, token), {})
            weights = {kind: x for kind, x in weights.items() if _known_now(kind, given)}
            for kind in weights:
                terms[teacher, token, kind] = _term(kind, both, given, loss.options_of(teacher, token, kind))
            weighted = [weight * terms[teacher, token, kind] for kind, weight in weights.items()]
            if weighted:
                sums.append(sum(weighted[1:], weighted[0]))
        if sums:
            means[teacher] = torch.stack(sums).mean(0)
    if not rows:
        return TeacherLosses(tuple(means), torch.stack(list(means.values()), dim=1), terms)
    any_prediction = next(iter(next(iter(predictions.values())).values()))
    mine = tuple(teacher for teacher in teachers if teacher in means or teacher in rows)
    loss_BT, there_BT = _spread(mine, means, rows, any_prediction)
    return TeacherLosses(mine, loss_BT, terms, there_BT)


def _known_now(kind: str, known: Mapping[str, Any]) -> bool:
    """Whether a term can be taken: none of masked images where none are shown, as in validation."""
    return KINDS[kind].needs != "masked" or "masked" in known


def _term(kind: str, sides: tuple[Tensor, Tensor], known: Mapping[str, Any], options: dict[str, Any]) -> Tensor:
    """One term of every image, (M,), of predictions and targets; `known`: what kinds need, by name."""
    need = KINDS[kind].needs
    if need == "logits":
        sides = known[need](sides[0]), known[need](sides[1])
    elif need == "masked":
        masked: Masked = known[need]
        sides, options = (masked.prediction, sides[1]), {"mask_BP": masked.mask_BP, "cells": masked.cells}
    elif need is not None:
        options = {**options, need: known[need]}
    return kind_function(kind)(*sides, **options)


def _spread(
    teachers: Sequence[str], means: Mapping[str, Tensor], rows: Mapping[str, Tensor], prediction: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of the images that each teacher has targets of, (M,), as those of all, (B, T); and where they are.

    `prediction`: any of the batch.
    """
    zeros_B = prediction.new_zeros(len(prediction), dtype=torch.float32)
    if not means:
        # A share in which nobody has a target takes part in the backward pass all the same: processes wait for it.
        zeros_B = zeros_B + prediction[:0].float().sum()
    losses, there = [], []
    for teacher in teachers:
        rows_M, loss_M = rows.get(teacher), means.get(teacher, zeros_B[:0])
        losses.append(loss_M if rows_M is None else zeros_B.scatter(0, rows_M, loss_M))
        there.append(~zeros_B.bool() if rows_M is None else zeros_B.bool().index_fill(0, rows_M, True))
    return torch.stack(losses, dim=1), torch.stack(there, dim=1)


def _of_rows(x: Tensor, rows_M: Tensor | None) -> Tensor:
    """Predictions of some images, float32."""
    return (x if rows_M is None else x.index_select(0, rows_M)).float()


def keep_teachers(loss_BT: Tensor, uniforms_BT: Tensor, probability: float, there_BT: Tensor | None = None) -> Tensor:
    """Which teachers an image keeps, (B, T) in {0, 1}, float32.

    The teacher with the highest loss is always kept (the first of equals); each other is dropped with `probability`,
    decided by the given uniform numbers. A teacher without a target (not `there_BT`) is neither.
    """
    compared_BT = loss_BT.detach()
    if there_BT is not None:
        compared_BT = compared_BT.masked_fill(~there_BT, -torch.inf)
    keep_BT = (uniforms_BT >= probability).scatter(1, compared_BT.argmax(dim=1, keepdim=True), True)
    return (keep_BT if there_BT is None else keep_BT & there_BT).to(torch.float32)


def kept(
    loss: LossConfig, loss_BT: Tensor, uniforms_BT: Tensor, own_BT: Tensor | None, there_BT: Tensor | None = None
) -> Tensor:
    """What a training batch learns from, (B, T) in {0, 1}, by the balance of its losses.

    `own_BT`: which teachers are for an image of its dataset, with `balance: own_data`. `there_BT`: which have targets.
    """
    if loss.balance == "dropping":
        return keep_teachers(loss_BT, uniforms_BT, loss.drop_probability, there_BT)
    keep_BT = torch.ones_like(loss_BT) if own_BT is None else own_BT
    return keep_BT if there_BT is None else keep_BT * there_BT


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
