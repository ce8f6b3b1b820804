"""Direction to the teacher's class centre, and norm (ND: Wang et al., arXiv 2305.17007, and its code)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_direction(prediction_BE: Tensor, target_BE: Tensor, centers: Tensor) -> Tensor:
    """(B,): 1 - s·c/‖c‖ / max(‖s‖, ‖t‖), with c the teacher's mean of the image's class, `centers` (B, E).

    A prediction that is shorter than the target is made longer, too, a longer one only turned; the target's own direction is
    not used.
    """
    s_BE, longest_B = prediction_BE.float(), torch.linalg.vector_norm(target_BE.float(), dim=-1)
    longest_B = torch.maximum(torch.linalg.vector_norm(s_BE, dim=-1), longest_B)
    return 1.0 - (s_BE * F.normalize(centers.float(), dim=-1)).sum(-1) / longest_B
