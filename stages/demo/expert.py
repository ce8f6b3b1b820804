"""How the demo's digit expert was made: a small network, trained on 400 of the demo's training digits,
moved, turned and noisy.

    python -m unic_pipe.stages.demo.expert expert.safetensors

takes about a minute; the file that comes with the package was made so, once, so that the demo has the same teacher on
every machine.

Shapes: B images, S image side in pixels, H, W pixels of a scan.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.stages.demo.config import ARCHITECTURE
from unic_pipe.stages.demo.data import digits, enlarge

SCANS, SIZE, BATCH, EPOCHS, LR = 400, 64, 64, 30, 6e-3


def train(seed: int = 0) -> dict[str, Tensor]:
    """The state dict of the trained network, in half precision."""
    scans_NHW, labels_N = digits()
    images = [enlarge(scan_HW).resize((SIZE, SIZE)) for scan_HW in scans_NHW[:SCANS]]
    x_N3SS = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    y_N = torch.from_numpy(labels_N[:SCANS])
    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05)
    steps = SCANS // BATCH * EPOCHS
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(EPOCHS):
        for rows_B in torch.randperm(SCANS).split(BATCH)[: SCANS // BATCH]:  # type: ignore[no-untyped-call]
            logits = model((altered(x_N3SS[rows_B]) - 0.5) / 0.5)
            optimizer.zero_grad()
            F.cross_entropy(logits, y_N[rows_B], label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }


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
    LocalStore(Path(file).parent).put(Path(file).name, save(train()))
