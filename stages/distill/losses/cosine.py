"""1 - cos(s, t), mean over tokens (UNIC, arXiv 2408.05088, section 3.1; AM-RADIO, EUPE, DUNE)."""

from torch import Tensor
from torch.nn import functional as F


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) of (B, E) or (B, P, E): 1 less the cosine of every token's angle, averaged over an image's tokens."""
    loss = 1.0 - F.cosine_similarity(prediction.float(), target.float(), dim=-1)
    return loss.mean(-1) if loss.ndim == 2 else loss
