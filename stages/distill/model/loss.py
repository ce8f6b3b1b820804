"""The distillation loss with teacher dropping (UNIC, arXiv 2408.05088, sections 3.1 and 3.3).

Shapes: B images, P patch tokens, E dimension of a teacher, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.schemas.config import TokenType

Predictions = Mapping[TokenType, Mapping[str, Tensor]]
"""By token type and teacher: cls (B, E), patch (B, P, E)."""


@dataclass(frozen=True)
class TokenLosses:
    """The two terms of one teacher and token type, per image (B,); patch terms are averaged over tokens."""

    cosine_B: Tensor
    smooth_l1_B: Tensor


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
    terms: dict[tuple[str, TokenType], TokenLosses]


def teacher_losses(predictions: Predictions, targets: Predictions, cosine: float, smooth_l1: float) -> TeacherLosses:
    """Loss per image and teacher: the mean over the targets' token types of `cosine` (1 - cos) + `smooth_l1` smooth-L1."""
    tokens = tuple(token for token in predictions if token in targets)
    teachers = tuple(predictions[tokens[0]])
    terms = {
        (teacher, token): token_losses(predictions[token][teacher].float(), targets[token][teacher])
        for teacher in teachers
        for token in tokens
    }
    per_teacher = [
        torch.stack([cosine * terms[t, k].cosine_B + smooth_l1 * terms[t, k].smooth_l1_B for k in tokens]).mean(0)
        for t in teachers
    ]
    return TeacherLosses(teachers, torch.stack(per_teacher, dim=1), terms)


def keep_teachers(loss_BT: Tensor, uniforms_BT: Tensor, probability: float) -> Tensor:
    """Which teachers an image keeps, (B, T) in {0, 1}, float32.

    The teacher with the highest loss is always kept (the first of equals); each other is dropped with `probability`,
    decided by the given uniform numbers.
    """
    hardest_B1 = loss_BT.detach().argmax(dim=1, keepdim=True)
    keep_BT = uniforms_BT >= probability
    return keep_BT.scatter(1, hardest_B1, True).to(torch.float32)


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
