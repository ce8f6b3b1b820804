"""Rendering: decoded image + parameters -> uint8 view, with torchvision v2's functional operations on the CPU (and `colours`,
their equal).

Shapes: H, W height and width in pixels; C = 3 channels (RGB); B batch.

A pure function of its arguments: it draws nothing, and neither reads nor changes torch's modes. Safe in threads.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unic_pipe.pipeline.views.colours import coloured
from unic_pipe.pipeline.views.parameters import view_parameters
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.views import ViewParameters


def render(image_HWC: np.ndarray, parameters: ViewParameters, recipe: Recipe, size: int) -> torch.Tensor:
    """The view of a decoded image: uint8 tensor (3, size, size), contiguous, sharing no memory with the image.

    `image_HWC` is uint8 (H, W, 3), RGB, of the size that the parameters were drawn for, and never written to; `recipe`, that
    they were drawn from, gives what is not drawn (kernel, threshold, centre fraction).
    Raises ValueError: not such an image, or the box does not lie inside it.
    """
    # A caller's autocast must not reach float arithmetic.
    with torch.autocast("cpu", enabled=False):
        return coloured(render_geometry(image_HWC, parameters, recipe, size), parameters, recipe)


def render_geometry(image_HWC: np.ndarray, parameters: ViewParameters, recipe: Recipe, size: int) -> torch.Tensor:
    """The view without its photometric part (colours, blur, solarize), which `photometric` then does for a batch.

    Arguments, result and errors as of `render`.
    """
    p = parameters
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(f"expected a uint8 image (H, W, 3), found {image_HWC.dtype} {image_HWC.shape}")
    if p.top + p.height > image_HWC.shape[0] or p.left + p.width > image_HWC.shape[1]:
        raise ValueError(f"the parameters were drawn for another image than one of shape {image_HWC.shape}")
    # A copy, because arrays of decoders may be read-only and torch's operations may work in place.
    box_HWC = np.array(image_HWC[p.top : p.top + p.height, p.left : p.left + p.width], order="C")
    x_CHW = torch.from_numpy(box_HWC).permute(2, 0, 1)
    x_CHW = _resized(x_CHW, recipe, size)
    return (F.horizontal_flip(x_CHW) if p.flip else x_CHW).contiguous()


def render_view(image_HWC: np.ndarray, recipe: Recipe, seed: int, key: str, view: int, size: int) -> torch.Tensor:
    """View number `view` of the sample `key` at an input size: uint8 tensor (3, size, size)."""
    height, width = image_HWC.shape[:2]
    return render(image_HWC, view_parameters(recipe, seed, key, view, (height, width)), recipe, size)


def normalize(
    x_B3HW: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(x / 255 - mean) / std per channel, computed in float32 on x's device and returned as `dtype`.

    x is uint8; mean and std are in units of [0, 1]. One multiply-add: x * 1 / (255 std) - mean / std.
    """
    scale_311, shift_311 = _scale_and_shift(tuple(mean), tuple(std), x_B3HW.device)
    return x_B3HW.to(torch.float32).mul_(scale_311).add_(shift_311).to(dtype)


@lru_cache(maxsize=256)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on the device: to bring them there, batch after batch, waits each time for all that it has yet to do."""
    scale, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):
        scale_311, shift_311 = (
            torch.tensor(x, dtype=torch.float32, device=device).view(3, 1, 1) for x in (scale, shift)
        )
    return scale_311, shift_311


def _resized(x_CHW: torch.Tensor, recipe: Recipe, size: int) -> torch.Tensor:
    """(3, size, size): the box stretched to it, or for `center` the short side resized and the centre cut out."""
    target = [size, size] if recipe.crop == "random" else [round(size / recipe.center_fraction)]
    resized: torch.Tensor = F.resize(x_CHW, target, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized if recipe.crop == "random" else F.center_crop(resized, [size, size])
