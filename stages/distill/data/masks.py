"""Which patches a student does not see when it is shown images a second time, from uniform draws of (seed, epoch, row).

Shapes: B images, P patches, L draws of an image: whether it is masked, then one for every patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASKED_IMAGES, MASKED_CELLS = 0.5, 0.5
"""Part of the images that are masked, and part of their patches (Proteus, arXiv 2407.10366)."""


def masked_cells(draws_BL: Tensor, cells: int) -> Tensor:
    """Which of an image's `cells` patches are masked, bool (B, P): equally many of every image that is masked."""
    lowest_BM = draws_BL[:, 1 : 1 + cells].argsort(dim=1, stable=True)[:, : round(MASKED_CELLS * cells)]
    none_BP = torch.zeros(len(draws_BL), cells, dtype=torch.bool, device=draws_BL.device)
    return none_BP.scatter(1, lowest_BM, True) & (draws_BL[:, :1] < MASKED_IMAGES)
