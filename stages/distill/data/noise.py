"""Colours of the student's images that no view in the cache has, from uniform draws of (seed, epoch, row).

Shapes: B images, S image side in pixels.
"""

from __future__ import annotations

from torch import Tensor

LANES = 3
"""Draws of an image: brightness, contrast, saturation."""
GREY = (0.299, 0.587, 0.114)
"""Luma of red, green and blue (ITU-R BT.601)."""


def noisy(images_B3SS: Tensor, draws_B3: Tensor, strength: float) -> Tensor:
    """Images (uint8) with their brightness, contrast and saturation multiplied in turn, float32 in [0, 255].

    Each factor is uniform in [1 - `strength`, 1 + `strength`], as that of torchvision's ColorJitter.
    """
    brightness, contrast, saturation = (1 + strength * (2 * draws_B3.float() - 1)).view(-1, LANES, 1, 1, 1).unbind(1)
    x_B3SS = (images_B3SS.float() * brightness).clamp(0, 255)
    mean_B111 = _grey(x_B3SS).mean(dim=(2, 3), keepdim=True)
    x_B3SS = (mean_B111 + (x_B3SS - mean_B111) * contrast).clamp(0, 255)
    grey_B1SS = _grey(x_B3SS)
    return (grey_B1SS + (x_B3SS - grey_B1SS) * saturation).clamp(0, 255)


def _grey(x_B3SS: Tensor) -> Tensor:
    weights_3 = x_B3SS.new_tensor(GREY)
    return (x_B3SS * weights_3.view(3, 1, 1)).sum(dim=1, keepdim=True)
