"""The photometric part of views for a whole batch on any device: colours, grayscale, blur and solarize of uint8 images.

Equal to what `render` does image by image on a CPU with fused multiply-add, to the last bit, but for the blur, whose
sums have another order: there a value that lies between two integers may be rounded to the other one (R7's tolerance
holds; the tests say so). Where torch's CPU kernels multiply and add with one rounding, float64 does here: it holds the
product exactly, so that the bits do not depend on how a device's compiler contracts.

Images that need an operation at the same place of their order are taken out, worked on together, and put back.

Shapes: B images, S of them in a step, E entries (an operation of an image), F images to be blurred, K kernel width, H
and W pixels. x is uint8 in 0 to 255, as is every intermediate result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from unic_pipe.pipeline.views.blur import blur_of, gaussian_kernel
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.views import JitterOperation, ViewParameters

Operation = Literal[JitterOperation, "grayscale", "blur", "solarize"]

_GREY = tuple(float(np.float32(weight)) for weight in (0.2989, 0.587, 0.114))
"""torchvision's weights of red, green and blue, as float32 has them."""


@dataclass(frozen=True)
class Plan:
    """What is to be done to a batch: `steps` of (operation, its first entry, the entry after its last)."""

    steps: tuple[tuple[Operation, int, int], ...]
    rows_E: torch.Tensor
    """int64: the image of each entry."""
    factors_E2: torch.Tensor
    """float32: the factor of each entry (hue: the turn), and 1 - factor."""
    kernels_FK: torch.Tensor
    """float32: the kernel of each entry of the blur."""
    threshold: float
    """Solarize inverts values of at least this, in 0 to 255."""

    def to(self, device: torch.device | str, pinned: bool = False) -> Plan:
        """The same on a device; `pinned` memory lets the copy run behind the CPU's back."""
        rows_E, factors_E2, kernels_FK = (
            (t.pin_memory() if pinned else t).to(device, non_blocking=pinned)
            for t in (self.rows_E, self.factors_E2, self.kernels_FK)
        )
        return Plan(self.steps, rows_E, factors_E2, kernels_FK, self.threshold)


@dataclass(frozen=True)
class Pixels:
    """Views: uint8 (N, 3, H, W), and what is still to be done to each of them (None: nothing, they are finished)."""

    x_N3HW: torch.Tensor
    recipe: Recipe | None = None
    parameters: tuple[ViewParameters, ...] | None = None

    def __len__(self) -> int:
        return len(self.x_N3HW)

    def batch(self, rows: slice) -> tuple[torch.Tensor, Plan | None]:
        """Some rows, uint8 (B, 3, H, W), and the plan of what is still to be done to them, on the CPU."""
        x_B3HW = self.x_N3HW[rows]
        if self.parameters is None or self.recipe is None:
            return x_B3HW, None
        return x_B3HW, plan_of(self.parameters[rows], self.recipe, x_B3HW.shape[-1])


def plan_of(parameters: Sequence[ViewParameters], recipe: Recipe, size: int) -> Plan:
    """The plan of a batch of views of `size` pixels, drawn from `recipe`, on the CPU."""
    entries: list[tuple[int, float]] = []
    steps: list[tuple[Operation, int, int]] = []

    def add(operation: Operation, found: Iterable[tuple[int, float]]) -> None:
        start = len(entries)
        entries.extend(found)
        if len(entries) > start:
            steps.append((operation, start, len(entries)))

    numbered = list(enumerate(parameters))
    names: tuple[JitterOperation, ...] = ("brightness", "contrast", "saturation", "hue")
    for place in range(max((len(p.jitter) for p in parameters), default=0)):
        for name in names:
            here = [(i, p.jitter[place]) for i, p in numbered if place < len(p.jitter)]
            add(name, [(i, factor) for i, (operation, factor) in here if operation == name])
    add("grayscale", [(i, 0.0) for i, p in numbered if p.grayscale])
    blurs = [(i, *blur_of(p.blur_sigma, recipe, size)) for i, p in numbered if p.blur_sigma is not None]
    blurs = [(i, half, sigma) for i, half, sigma in blurs if half]
    add("blur", [(i, 0.0) for i, _, _ in blurs])
    add("solarize", [(i, 0.0) for i, p in numbered if p.solarize])
    kernels = [gaussian_kernel(sigma, half) for _, half, sigma in blurs]
    factors_E = torch.tensor([factor for _, factor in entries], dtype=torch.float64)
    return Plan(
        steps=tuple(steps),
        rows_E=torch.tensor([i for i, _ in entries], dtype=torch.int64),
        # 1 - factor is rounded once, from float64, as torchvision does.
        factors_E2=torch.stack([factors_E, 1 - factors_E], dim=1).to(torch.float32),
        kernels_FK=torch.stack(kernels) if kernels else torch.empty((0, 1)),
        threshold=recipe.solarize_threshold * 255,
    )


def finish(x_B3HW: torch.Tensor, plan: Plan, device: torch.device) -> torch.Tensor:
    """`apply` on a device, or on the CPU if the device is `mps`, which has no float64. The result lies where it ran."""
    place = torch.device("cpu") if device.type == "mps" else device
    return apply(x_B3HW.to(place), plan.to(place))


def apply(x_B3HW: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The views of a batch after their photometric part: uint8 (B, 3, H, W); `x_B3HW` is left as it is.

    The plan lies on x's device, which has float64. Nothing here waits for the device.
    """
    x_B3HW = x_B3HW.clone()
    # A caller's autocast must not reach float arithmetic.
    with torch.autocast(x_B3HW.device.type, enabled=False):
        for operation, start, end in plan.steps:
            rows_S = plan.rows_E[start:end]
            x_B3HW.index_copy_(0, rows_S, _step(x_B3HW[rows_S], operation, plan, slice(start, end)))
    return x_B3HW


def _step(x_S3HW: torch.Tensor, operation: Operation, plan: Plan, entries: slice) -> torch.Tensor:
    """One operation on the images that have it here."""
    factor_S111, rest_S111 = plan.factors_E2[entries, :, None, None, None].unbind(1)
    if operation == "brightness":
        return _bytes(x_S3HW * factor_S111)
    if operation == "contrast":
        return _blended(x_S3HW, _mean(_grey(x_S3HW).floor_()), factor_S111, rest_S111)
    if operation == "saturation":
        return _blended(x_S3HW, _grey(x_S3HW).floor_(), factor_S111, rest_S111)
    if operation == "hue":
        return _turned(x_S3HW, factor_S111)
    if operation == "grayscale":
        return _grey(x_S3HW).to(torch.uint8).expand(-1, 3, -1, -1)
    if operation == "blur":
        return _blurred(x_S3HW, plan.kernels_FK)
    return torch.where(x_S3HW >= plan.threshold, 255 - x_S3HW, x_S3HW)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Clamped, and rounded towards 0."""
    return x.clamp_(0, 255).to(torch.uint8)


def _grey(x_S3HW: torch.Tensor) -> torch.Tensor:
    """Luma, float32 (S, 1, H, W): each product but the first is added with one rounding."""
    red, green, blue = (x_S3HW[:, c : c + 1] for c in range(3))
    grey = red * _GREY[0]
    for channel, weight in ((green, _GREY[1]), (blue, _GREY[2])):
        grey = grey.double().add_(channel, alpha=weight).float()
    return grey


def _mean(grey_S1HW: torch.Tensor) -> torch.Tensor:
    """Mean of each image, float32 (S, 1, 1, 1): of whole numbers, summed without error."""
    total_S111 = grey_S1HW.to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)
    return (total_S111.double() / grey_S1HW[0].numel()).float()


def _blended(
    x_S3HW: torch.Tensor, other: torch.Tensor, factor_S111: torch.Tensor, rest_S111: torch.Tensor
) -> torch.Tensor:
    """x * factor + other * (1 - factor), the second product added with one rounding."""
    own_S3HW = (x_S3HW * factor_S111).double()
    return _bytes(own_S3HW.addcmul_(other.double(), rest_S111.double()).float())


def _turned(x_S3HW: torch.Tensor, turn_S111: torch.Tensor) -> torch.Tensor:
    """The hue moved by `turn`: the operations of `hue.turn_hue` in the same order."""
    x = x_S3HW * (1 / 255)
    low, v = torch.aminmax(x, dim=1, keepdim=True)
    span = v - low
    grey = (span == 0).to(torch.float32)
    s = span / (v + grey)
    rc, gc, bc = torch.split((v - x) / (span + grey), 1, dim=1)
    h = torch.where(rc == 0, bc - gc, torch.where(gc == 0, rc + 2 - bc, gc + 4 - rc))
    h = h.mul_(1 / 6).add_(1)
    h = h.sub_(h.floor()).add_(turn_S111)
    h = h.sub_(h.floor()).mul_(6)
    sector = h.floor()
    sf, rest = s * h.sub_(sector), 1 - s
    q, t, p, v = (_unit_bytes(y) for y in ((1 - sf) * v, (sf + rest) * v, rest * v, v))
    # Red goes through v, q, p, p, t, v in sectors 0 to 5 (6 is 0 again), green two sectors later, blue four.
    later_311 = torch.arange(0, -6, -2, device=x.device).remainder_(6).to(torch.uint8).view(3, 1, 1)
    place = (sector.to(torch.uint8) + later_311) % 6
    falling = torch.where(place == 1, q, torch.where((place == 2) | (place == 3), p, v))
    return torch.where(place == 4, t, falling)


def _unit_bytes(x: torch.Tensor) -> torch.Tensor:
    """Values in 0 to 1 as bytes, as torchvision converts floats."""
    return x.clamp(0, 1).mul_(255.0 + 1.0 - 1e-3).to(torch.uint8)


def _blurred(x_S3HW: torch.Tensor, kernels_SK: torch.Tensor) -> torch.Tensor:
    """Gaussian blur along the columns, then along the rows, reflected at the borders, rounded to nearest.

    Sums of shifted images, not a convolution: that would be TF32 or another algorithm on some devices.
    """
    width, (height, breadth) = kernels_SK.shape[1], x_S3HW.shape[-2:]
    half = width // 2
    x = torch.nn.functional.pad(x_S3HW.to(torch.float32), [half] * 4, mode="reflect")
    weights = kernels_SK[:, :, None, None, None].unbind(1)
    down = x[..., :height, :] * weights[0]
    for k in range(1, width):
        down.addcmul_(x[..., k : k + height, :], weights[k])
    across = down[..., :breadth] * weights[0]
    for k in range(1, width):
        across.addcmul_(down[..., k : k + breadth], weights[k])
    return across.round_().clamp_(0, 255).to(torch.uint8)
