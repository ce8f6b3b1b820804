"""The distance of Gram matrices of an image's patches (DINOv3, arXiv 2508.10104), an addition to any loss.

The matrices are of an image's own tokens; the official code's form over all tokens of a batch costs (B·P)² and depends on
how a batch is shared out.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Negatives = Literal["keep", "remove", "remove_teacher"]


def gram(
    prediction_BPE: Tensor,
    target_BPE: Tensor,
    unit: bool = True,
    negatives: Negatives = "keep",
    official: bool = False,
) -> Tensor:
    """(B,): mean squared difference over all P² entries.

    Args:
        prediction_BPE: E need not be the target's.
        target_BPE: the teacher's tokens.
        unit: of tokens scaled to length 1, so that entries are cosines.
        negatives: `remove` sets negative entries of both matrices to 0; `remove_teacher` the teacher's, and the
            student's where both are negative.
        official: in `remove_teacher`, leave the student's alone, as the official code does: it looks for entries where
            both are negative once the teacher's are 0.
    """
    s_BPP, t_BPP = _gram(prediction_BPE, unit), _gram(target_BPE, unit)
    if negatives == "remove":
        s_BPP, t_BPP = s_BPP.clamp(min=0), t_BPP.clamp(min=0)
    elif negatives == "remove_teacher":
        if not official:
            s_BPP = s_BPP.masked_fill((s_BPP < 0) & (t_BPP < 0), 0.0)
        t_BPP = t_BPP.clamp(min=0)
    return (s_BPP - t_BPP).square().mean((1, 2))


def _gram(x_BPE: Tensor, unit: bool) -> Tensor:
    x_BPE = F.normalize(x_BPE.float(), dim=-1) if unit else x_BPE.float()
    return x_BPE @ x_BPE.transpose(1, 2)
