"""Gaussian blur of uint8 images: torchvision v2's bytes, at a tenth of its time.

torchvision multiplies with a square kernel, K^2 products a value, each added to the sum with one rounding, line by line.
Here the columns are summed first, and then the rows: 2 K products, and sums that differ by rounding only. A byte can
differ only where a sum lies that near to the middle between two bytes; those few are summed as torchvision sums them.

Shapes: H, W pixels; C = 3 channels (RGB); K kernel width; E values to be summed again, P = K K products each.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from unic_pipe.schemas.recipes import Recipe

_LEAST_SIGMA = 0.2
"""Pixels. Below it a neighbour weighs less than exp(-1 / (2 * 0.2^2)) = 4e-6: no uint8 value changes."""
_MANY = 0.03
"""Where more of the values than this are near a middle (patterns of two bytes), torchvision itself is quicker."""
_AT_ONCE = 4096


def blur_of(sigma_reference: float, recipe: Recipe, size: int) -> tuple[int, float]:
    """Half width of the Gaussian kernel and its sigma in pixels of a view: the reference size's in proportion.

    A half width of 0 means that nothing is to be done. Whenever it is not 0, it is the same for all sigmas.
    """
    scale = size / recipe.reference_size
    # Reflected borders cannot be wider than the view.
    half = min(math.floor((recipe.blur_kernel * scale - 1) / 2 + 0.5), size - 1)
    sigma = sigma_reference * scale
    return (0 if half < 1 or sigma < _LEAST_SIGMA else half), sigma


def gaussian_kernel(sigma: float, half: int) -> torch.Tensor:
    """Weights (2 half + 1,), float32, as torchvision makes them."""
    width = 2 * half + 1
    limit = (width - 1) / (2 * 2**0.5)
    kernel_K: torch.Tensor = torch.linspace(-limit, limit, steps=width).div(sigma).square().neg().softmax(dim=0)
    return kernel_K


def blurred(x_CHW: torch.Tensor, half: int, sigma: float) -> torch.Tensor:
    """The image, uint8 (3, H, W), blurred with a kernel of 2 half + 1 pixels and reflected borders, rounded to nearest."""
    kernel_K = gaussian_kernel(sigma, half)
    width, (height, breadth) = len(kernel_K), x_CHW.shape[-2:]
    padded_CHW = torch.nn.functional.pad(x_CHW.to(torch.float32)[None], [half] * 4, mode="reflect")[0]
    weights = kernel_K.tolist()
    down = padded_CHW[:, :height] * weights[0]
    for k in range(1, width):
        down.add_(padded_CHW[:, k : k + height], alpha=weights[k])
    across = down[..., :breadth] * weights[0]
    for k in range(1, width):
        across.add_(down[..., k : k + breadth], alpha=weights[k])
    # Both sums' roundings: at most 2^-24 of every partial sum, which is at most 255 times the weights so far.
    near = 255 * 2.0**-24 * ((width**2 + 1) / 2 + width + 3)
    low_CHW = (across + (0.5 - near)).numpy().astype(np.uint8)
    unsure_E = np.flatnonzero(across.add_(0.5 + near).numpy().astype(np.uint8) != low_CHW)
    if len(unsure_E) > _MANY * low_CHW.size:
        side = [width, width]
        bytes_CHW: torch.Tensor = F.gaussian_blur(x_CHW, side, [sigma, sigma])
        return bytes_CHW
    for start in range(0, len(unsure_E), _AT_ONCE):
        places_E = unsure_E[start : start + _AT_ONCE]
        low_CHW.reshape(-1)[places_E] = _summed(padded_CHW, places_E, kernel_K)
    return torch.from_numpy(low_CHW)


def _summed(padded_CHW: torch.Tensor, places_E: NDArray[np.int64], kernel_K: torch.Tensor) -> NDArray[np.uint8]:
    """Values of the blurred image by their places in it, from an image with borders of half a kernel."""
    border = len(kernel_K) - 1
    _, height, breadth = padded_CHW.shape
    channel_E, place_E = np.divmod(places_E, (height - border) * (breadth - border))
    row_E, column_E = np.divmod(place_E, breadth - border)
    across_K = np.arange(len(kernel_K))
    square_P1 = (across_K[:, None] * breadth + across_K).reshape(-1, 1)
    pixels_PE = padded_CHW.reshape(-1).numpy()[square_P1 + ((channel_E * height + row_E) * breadth + column_E)]
    sum_E = torch.zeros(len(places_E))
    for pixel_E, weight in zip(
        torch.from_numpy(pixels_PE), torch.outer(kernel_K, kernel_K).flatten().tolist(), strict=True
    ):
        sum_E.add_(pixel_E, alpha=weight)
    bytes_E: NDArray[np.uint8] = np.rint(sum_E.numpy()).astype(np.uint8)
    return bytes_E
