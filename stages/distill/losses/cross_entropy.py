"""Cross-entropy of class probabilities (TinyViT, arXiv 2207.10666; DeiT, arXiv 2012.12877; ScaleKD, arXiv 2411.06786).

Predictions and targets are logits (B, C). Cross-entropy is KL plus the teacher's entropy: the gradient is the same.
"""

from torch import Tensor
from torch.nn import functional as F

from unic_pipe.stages.distill.losses.top_k import top_k_target


def soft_cross_entropy(
    prediction_BC: Tensor,
    target_BC: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    official: bool = False,
) -> Tensor:
    """(B,): -T²·Σ softmax(t / T)·log softmax(s / T).

    `top_k`: of the teacher's probabilities only the largest are known, and the rest is spread (TinyViT); `official` as
    for `top_k_target`.
    """
    target_BC = target_BC.float() / temperature
    if top_k is None:
        probabilities_BC = target_BC.softmax(-1)
    else:
        probabilities_BC = top_k_target(target_BC, top_k, official)
    return temperature**2 * against(prediction_BC.float() / temperature, probabilities_BC)


def hard_cross_entropy(prediction_BC: Tensor, target_BC: Tensor) -> Tensor:
    """(B,): cross-entropy with the teacher's first class."""
    return F.cross_entropy(prediction_BC.float(), target_BC.argmax(-1), reduction="none")


def against(prediction_BC: Tensor, probabilities_BC: Tensor) -> Tensor:
    """(B,): -Σ target·log softmax(s) with given probabilities, which need not sum to 1."""
    return -(probabilities_BC * prediction_BC.float().log_softmax(-1)).sum(-1)
