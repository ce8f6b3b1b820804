"""Smooth-L1 with beta 1: d²/2 below 1, |d| - 1/2 above (UNIC, arXiv 2408.05088, section 3.1; AM-RADIO, EUPE, DUNE, Theia)."""

from torch import Tensor
from torch.nn import functional as F


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) of (B, E) or (B, P, E): the mean over dimensions and tokens."""
    loss = F.smooth_l1_loss(prediction.float(), target.float(), reduction="none", beta=1.0).mean(-1)
    return loss.mean(-1) if loss.ndim == 2 else loss
