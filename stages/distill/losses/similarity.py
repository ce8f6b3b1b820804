"""Similarities as targets: to a queue of the teacher's vectors (lightly-train's distillation v1 and v3), or of an
image's cells to each other (v3). Nothing is multiplied by T².

Shapes: Q vectors in the queue.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.stages.distill.losses.kl import kl


def queue_similarity(prediction_BE: Tensor, target_BE: Tensor, queue: Tensor, temperature: float = 0.07) -> Tensor:
    """(B,): KL(softmax(t·Qᵀ / T) ‖ softmax(s·Qᵀ / T)) of s and t scaled to length 1.

    The queue (Q, E) holds unit vectors and already this batch's (see `pushed`), so that each image is compared with itself.
    Rows of zeros, with which a queue starts, are logits of 0 and count.
    """
    s_BQ, t_BQ = (unit(x) @ queue.float().T / temperature for x in (prediction_BE, target_BE))
    return kl(s_BQ, t_BQ)


def cell_similarity(prediction_BPE: Tensor, target_BPE: Tensor, temperature: float = 0.105) -> Tensor:
    """(B,): of the cosine matrices of an image's cells, KL row by row, mean over rows."""
    s_BPE, t_BPE = unit(prediction_BPE), unit(target_BPE)
    s_BPP, t_BPP = (x_BPE @ x_BPE.transpose(1, 2) / temperature for x_BPE in (s_BPE, t_BPE))
    return kl(s_BPP.flatten(0, 1), t_BPP.flatten(0, 1)).view(s_BPP.shape[:2]).mean(1)


def pushed(queue_QE: Tensor, batch_BE: Tensor) -> Tensor:
    """The queue with a batch's unit vectors in front, and the oldest gone; of a larger batch, its first Q."""
    return torch.cat([unit(batch_BE), queue_QE])[: len(queue_QE)]


def unit(x: Tensor) -> Tensor:
    """Vectors scaled to length 1, float32."""
    return F.normalize(x.float(), dim=-1)
