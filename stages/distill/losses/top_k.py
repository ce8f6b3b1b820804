"""A teacher's K largest class probabilities as a target over all classes (TinyViT, arXiv 2207.10666).

Shapes: B images, K kept classes, C classes.
"""

from torch import Tensor


def top_k_target(logits_BC: Tensor, k: int, official: bool = False) -> Tensor:
    """(B, C) float32: the K largest probabilities, and the rest spread evenly.

    `official`: as from TinyViT's files, which hold float16 values; their sum may exceed 1, and the tail is then negative.
    """
    values_BK, classes_BK = logits_BC.float().softmax(-1).topk(k)
    return dense_target(values_BK.half() if official else values_BK, classes_BK, logits_BC.shape[-1], official)


def dense_target(values_BK: Tensor, classes_BK: Tensor, classes: int, negative_tail: bool = False) -> Tensor:
    """(B, C) float32: the K values at their classes, and (1 - their sum) / (C - K) elsewhere.

    `negative_tail`: keep what is below 0, as the official code does, instead of setting it to 0.
    """
    values_BK = values_BK.float()
    rest_B1 = 1.0 - values_BK.sum(1, keepdim=True)
    if not negative_tail:
        rest_B1 = rest_B1.clamp(min=0.0)
    tail_B1 = rest_B1 / max(classes - values_BK.shape[1], 1)
    return tail_B1.repeat(1, classes).scatter(1, classes_BK.long(), values_BK)
