"""ScaleKD's distances of feature maps (arXiv 2411.06786, and its code), summed over cells as there."""

from torch import Tensor
from torch.nn import functional as F


def unit_maps(prediction_BPE: Tensor, target_BPE: Tensor) -> Tensor:
    """(B,), the spatial term: Σ over cells of ‖unit(s) - unit(t)‖², each cell's vector scaled to length 1."""
    s_BPE, t_BPE = F.normalize(prediction_BPE.float(), dim=-1), F.normalize(target_BPE.float(), dim=-1)
    return (s_BPE - t_BPE).square().sum((1, 2))


def unit_maps_without_mean(prediction_BPE: Tensor, target_BPE: Tensor) -> Tensor:
    """(B,), the frequency term: the same once each map's mean over cells is subtracted (a DCT without its first term)."""
    s_BPE, t_BPE = (x.float() - x.float().mean(1, keepdim=True) for x in (prediction_BPE, target_BPE))
    return unit_maps(s_BPE, t_BPE)
