"""How the demo's digit expert was made: a small network, trained on 200 of the demo's training digits,
moved, turned and noisy.

    python -m unic_pipe.stages.demo.expert expert.safetensors

takes about a minute; the file that comes with the package was made so, once, so that the demo has the same teacher on
every machine.

Shapes: B images, S image side in pixels, H, W pixels of a scan.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.stages.demo.config import ARCHITECTURE
from unic_pipe.stages.demo.data import digits, enlarge

SCANS, SIZE, BATCH, STEPS, LR = 200, 48, 50, 240, 6e-3


def digit_expert() -> dict[str, Tensor]:
    """The state dict of the demo's expert."""
    scans_NHW, labels_N = digits()
    return train([enlarge(scan_HW) for scan_HW in scans_NHW[:SCANS]], labels_N[:SCANS], STEPS)


def train(images: Sequence[Image.Image], labels_N: np.ndarray, steps: int) -> dict[str, Tensor]:
    """The state dict, in half precision, of a small network that was taught these classes (0 to C - 1)."""
    resized = [np.asarray(image.resize((SIZE, SIZE))) for image in images]
    x_N3SS, y_N = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels_N)
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=int(y_N.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for rows_B in islice(_batches(len(y_N)), steps):
        logits = model((altered(x_N3SS[rows_B]) - 0.5) / 0.5)
        optimizer.zero_grad()
        F.cross_entropy(logits, y_N[rows_B], label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }


def _batches(rows: int) -> Iterator[Tensor]:
    """Whole batches without end, in a new order each time through."""
    while True:
        yield from torch.randperm(rows).split(BATCH)[: rows // BATCH]  # type: ignore[no-untyped-call]


def altered(x_B3SS: Tensor) -> Tensor:
    """Images moved by up to a tenth, turned, resized, with less contrast and with noise; drawn from global state."""

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(x_B3SS), *shape)

    angle_B, zoom_B, move_B2 = between(-0.2, 0.2), between(0.9, 1.1), between(-0.2, 0.2, 2)
    rows = [zoom_B * angle_B.cos(), -zoom_B * angle_B.sin(), zoom_B * angle_B.sin(), zoom_B * angle_B.cos()]
    turn_B22 = torch.stack(rows, -1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([turn_B22, move_B2[..., None]], -1), list(x_B3SS.shape), align_corners=False)
    moved_B3SS = F.grid_sample(x_B3SS, grid, align_corners=False)
    black_B, contrast_B, noise_B = (between(0, high, 1, 1, 1) for high in (0.2, 0.2, 0.04))
    flat_B3SS = black_B + (1 - black_B - contrast_B) * moved_B3SS
    return (flat_B3SS + noise_B * torch.randn_like(x_B3SS)).clamp(0, 1)


if __name__ == "__main__":
    from safetensors.torch import save

    [file] = sys.argv[1:]
    LocalStore(Path(file).parent).put(Path(file).name, save(digit_expert()))
