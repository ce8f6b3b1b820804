"""Mean squared error (PHI-S, arXiv 2410.01680; Proteus, arXiv 2407.10366; Theia's first term; lightly-train's v2)."""

from torch import Tensor


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) of (B, E) or (B, P, E): the mean over dimensions and tokens."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def sequence_shares(patches: int) -> tuple[float, float]:
    """Weights of cls and of patches by which their `mse` add up to that of the whole sequence [cls, P patches].

    Proteus' `fea` term is over that sequence, so that its cls error counts in two terms.
    """
    return 1 / (1 + patches), patches / (1 + patches)
