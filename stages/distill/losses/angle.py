"""The squared angle over the teacher's own spread (C-RADIOv4's report, arXiv 2601.17237; the formula is not verified word
by word): θ² / dispersion², with the dispersion² about the mean direction of `pipeline.cache.directions`."""

import torch
from torch import Tensor
from torch.nn import functional as F


def angle(prediction: Tensor, target: Tensor, dispersion: float) -> Tensor:
    """(B,) of (B, E) or (B, P, E): the mean over tokens of their squared angle over `dispersion` (radians²)."""
    loss = angles(prediction, target).square() / dispersion
    return loss.mean(-1) if loss.ndim == 2 else loss


def angles(prediction: Tensor, target: Tensor) -> Tensor:
    """The angle of every token in radians, (B,) or (B, P).

    θ = 2 atan2(‖u - v‖, ‖u + v‖) of unit vectors (Kahan): acos is badly conditioned near 0, with an infinite slope at 1.
    """
    u, v = F.normalize(prediction.float(), dim=-1), F.normalize(target.float(), dim=-1)
    apart, together = torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1)
    return 2 * torch.atan2(apart, together)
