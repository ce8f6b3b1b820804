"""The photometric part of one view on the host: colours, grayscale, blur and solarize.

What torchvision v2's functional operations give, to the last bit, in half their time or less: between two operations
the pixels stay float32 (whole numbers, 0 to 255), in place, where torchvision makes bytes and unmakes them every time.

Shapes: H, W pixels; C = 3 channels (RGB).
"""

from collections.abc import Callable

import numpy as np
import torch

from unic_pipe.pipeline.views.blur import blur_of, blurred
from unic_pipe.pipeline.views.hue import turn_hue
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.views import JitterOperation, ViewParameters


def coloured(x_CHW: torch.Tensor, p: ViewParameters, recipe: Recipe) -> torch.Tensor:
    """The view, uint8 (3, H, W), after what was drawn for it; `x_CHW`, uint8 and contiguous, is left as it is."""
    if p.jitter or p.grayscale:
        colours_CHW = x_CHW.to(torch.float32)
        for operation, factor in p.jitter:
            colours_CHW = _ADJUST[operation](colours_CHW, factor)
        x_CHW = _bytes(_grey(colours_CHW).expand(3, -1, -1) if p.grayscale else colours_CHW)
    if p.blur_sigma is not None:
        half, sigma = blur_of(p.blur_sigma, recipe, x_CHW.shape[-1])
        x_CHW = blurred(x_CHW, half, sigma) if half else x_CHW
    return _solarized(x_CHW, recipe.solarize_threshold * 255) if p.solarize else x_CHW


def _brightness(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    return _whole(x_CHW.mul_(factor))


def _contrast(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    mean_111 = torch.mean(_grey(x_CHW), dim=(-3, -2, -1), keepdim=True)
    return _whole(x_CHW.mul_(factor).add_(mean_111, alpha=1.0 - factor))


def _saturation(x_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    grey_1HW = _grey(x_CHW)
    return _whole(x_CHW.mul_(factor).add_(grey_1HW, alpha=1.0 - factor))


def _hue(x_CHW: torch.Tensor, turn: float) -> torch.Tensor:
    return torch.from_numpy(turn_hue(_bytes(x_CHW).numpy(), turn)).to(torch.float32)


_ADJUST: dict[JitterOperation, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}


def _grey(x_CHW: torch.Tensor) -> torch.Tensor:
    """Luma, whole numbers in float32 (1, H, W), with torchvision's weights, each added with one rounding."""
    red_HW, green_HW, blue_HW = x_CHW
    grey_HW: torch.Tensor = red_HW.mul(0.2989).add_(green_HW, alpha=0.587).add_(blue_HW, alpha=0.114)
    return grey_HW.floor_()[None]


def _whole(x_CHW: torch.Tensor) -> torch.Tensor:
    """Clamped to 0 to 255, and rounded towards 0."""
    return x_CHW.clamp_(0, 255).floor_()


def _bytes(x_CHW: torch.Tensor) -> torch.Tensor:
    """NumPy's conversion, which takes a seventh of torch's time."""
    return torch.from_numpy(x_CHW.numpy().astype(np.uint8, order="C"))


def _solarized(x_CHW: torch.Tensor, threshold: float) -> torch.Tensor:
    """Values of at least the threshold (0 to 255) inverted: 255 - x is x with every bit turned."""
    x = x_CHW.numpy()
    return torch.from_numpy(x ^ np.negative((x >= threshold).view(np.uint8)))
