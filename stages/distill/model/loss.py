"""The distillation loss with teacher dropping (UNIC, arXiv 2408.05088, sections 3.1 and 3.3).

In a mixture of datasets a teacher may have targets for M of the images alone; where it has none, it takes no part.

Shapes: B images, M of them with a target, P patch tokens, E dimension of a teacher, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.schemas.config import TokenType

Predictions = Mapping[TokenType, Mapping[str, Tensor]]
"""By token type and teacher: cls (B, E), patch (B, P, E); targets (M, ...)."""


@dataclass(frozen=True)
class TokenLosses:
    """The two terms of one teacher and token type, per image with a target (M,); patch terms are averaged over tokens."""

    cosine_M: Tensor
    smooth_l1_M: Tensor


def token_losses(prediction: Tensor, target: Tensor) -> TokenLosses:
    """1 - cos, and smooth-L1 (beta 1) averaged over dimensions, of (B, E) or (B, P, E) float32 tensors."""
    cosine = 1.0 - F.cosine_similarity(prediction, target, dim=-1)
    smooth_l1 = F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0).mean(-1)
    if prediction.ndim == 3:
        cosine, smooth_l1 = cosine.mean(-1), smooth_l1.mean(-1)
    return TokenLosses(cosine, smooth_l1)


@dataclass(frozen=True)
class TeacherLosses:
    """Every teacher's loss of every image, and the terms that it was made from."""

    teachers: tuple[str, ...]
    loss_BT: Tensor
    """0 where a teacher has no target."""
    terms: dict[tuple[str, TokenType], TokenLosses]
    """Of the teachers that have targets."""
    there_BT: Tensor | None
    """Where a teacher has a target, bool; None: everywhere."""

    def images(self, column: str) -> int:
        """How many images a column of the metrics is the mean of: a teacher's, those for which it has targets."""
        teacher = column.partition("/")[0] if "/" in column else None
        own = [len(terms.cosine_M) for (name, _), terms in self.terms.items() if name == teacher]
        return len(self.loss_BT) if teacher is None else max(own, default=0)


def teacher_losses(
    predictions: Predictions, targets: Predictions, cosine: float, smooth_l1: float, rows: Mapping[str, Tensor] = {}
) -> TeacherLosses:
    """Loss per image and teacher: the mean over the targets' token types of `cosine` (1 - cos) + `smooth_l1` smooth-L1.

    `rows`: by teacher, the images (M, int64, maybe none) that its targets are of, where those are not all.
    """
    tokens = tuple(token for token in predictions if token in targets)
    teachers = tuple(predictions[tokens[0]])
    first = predictions[tokens[0]][teachers[0]]
    zeros_B = first.new_zeros(len(first), dtype=torch.float32)
    terms: dict[tuple[str, TokenType], TokenLosses] = {}
    losses, there = [], []
    for t in teachers:
        taught = [token for token in tokens if t in targets[token]]
        own = [token_losses(_of_rows(predictions[k][t], rows.get(t)), targets[k][t]) for k in taught]
        terms |= {(t, token): found for token, found in zip(taught, own, strict=True)}
        weighed = [cosine * found.cosine_M + smooth_l1 * found.smooth_l1_M for found in own]
        loss_M = torch.stack(weighed).mean(0) if weighed else zeros_B[:0]
        losses.append(zeros_B.scatter(0, rows[t], loss_M) if t in rows else loss_M)
        there.append(zeros_B.bool().index_fill(0, rows[t], True) if t in rows else ~zeros_B.bool())
    return TeacherLosses(teachers, torch.stack(losses, dim=1), terms, torch.stack(there, dim=1) if rows else None)


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


def loss_weights(keep_BT: Tensor, count: float | None = None) -> Tensor:
    """Weights of the losses, (B, T): kept entries share 1 equally over the batch.

    `count`: divide by this number instead of the entries kept. Shares of a batch (other processes', micro-batches)
    agree on one, and their sum is corrected once all entries are counted: normalising each share by itself would
    weigh images of shares that dropped more teachers more.
    """
    return keep_BT / (keep_BT.sum() if count is None else count)


def total_loss(loss_BT: Tensor, keep_BT: Tensor, count: float | None = None) -> Tensor:
    """The scalar loss of a batch, or one share's summand of it; `count` as for `loss_weights`."""
    return (loss_weights(keep_BT, count) * loss_BT).sum()
