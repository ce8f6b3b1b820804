"""Divergences of class probabilities at a temperature (Hinton et al., arXiv 1503.02531; DKD, arXiv 2203.08679).

Predictions and targets are logits (B, C).
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl(prediction_BC: Tensor, target_BC: Tensor, temperature: float = 1.0, over_classes: bool = False) -> Tensor:
    """(B,): T²·KL(softmax(t / T) ‖ softmax(s / T)).

    `over_classes`: divide by C, as DeiT's official code does, which averages over elements.
    """
    log_s_BC = (prediction_BC.float() / temperature).log_softmax(-1)
    log_t_BC = (target_BC.float() / temperature).log_softmax(-1)
    loss_B = temperature**2 * (log_t_BC.exp() * (log_t_BC - log_s_BC)).sum(-1)
    return loss_B / prediction_BC.shape[-1] if over_classes else loss_B


def decoupled_kl(
    prediction_BC: Tensor,
    target_BC: Tensor,
    labels_B: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 4.0,
) -> Tensor:
    """(B,): T²·(α·KL of [the labelled class, all others] + β·KL within the others)."""
    (two_s_B2, rest_s_BR), (two_t_B2, rest_t_BR) = (
        _decoupled(x_BC.float() / temperature, labels_B) for x_BC in (prediction_BC, target_BC)
    )
    return temperature**2 * (alpha * kl(two_s_B2, two_t_B2) + beta * kl(rest_s_BR, rest_t_BR))


def _decoupled(logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of [labelled, others] and within the C - 1 others."""
    own_BC = torch.zeros_like(logits_BC, dtype=torch.bool).scatter(1, labels_B[:, None], True)
    rest_BR = logits_BC[~own_BC].view(len(logits_BC), -1)
    return torch.stack([logits_BC[own_BC], rest_BR.logsumexp(1)], dim=1), rest_BR
