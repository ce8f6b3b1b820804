"""1 - cos of an image's whole map as one vector (Theia, arXiv 2407.20179, and its code)."""

from torch import Tensor

from unic_pipe.stages.distill.losses.cosine import cosine


def flat_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) of (B, E) or (B, P, E): one angle an image, over all P·E numbers; large tokens count for more."""
    return cosine(prediction.flatten(1), target.flatten(1))
