"""A linear head on frozen patch tokens, for classes or depth, as DINOv2 (Oquab et al., arXiv 2304.07193, 7.4) does.

Batch normalisation and one linear layer per token; logits are upsampled bilinearly to the labels. Segmentation: cross
entropy per pixel. Depth: the class token is appended to each patch token; 256 uniform bins, normalised linearly (AdaBins,
Bhat et al. 2021) at four times the grid, trained by the scale-invariant log loss (Eigen et al. 2014).

Shapes: B images, P = G x G patch tokens, D dimensions, C classes (or bins), S side of the labels, Q upsampled grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.stages.evaluate.dense_data import Scenes

BINS = 256
_LEAST_DEPTH = 1e-3
_FLOOR = 0.1
"""Added to each bin after the ReLU, so that a pixel always has one."""
_VARIANCE_FOCUS = 0.15
"""Weight of the squared mean log error beside its variance."""
_UPSAMPLED = 4
_WARMUP = 1500 / 40_000
"""Fraction of the steps in which the learning rate rises."""
_WEIGHT_DECAY = 1e-4


class LinearHead(nn.Module):
    """Tokens (B, P, D) to logits (B, C, rows, columns)."""

    def __init__(self, dim: int, classes: int, grid: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.BatchNorm1d(dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(dim, classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Logits on the grid of the patches."""
        logits: Tensor = self.linear(self.norm(x_BPD.flatten(0, 1)))
        return logits.reshape(len(x_BPD), *self.grid, -1).permute(0, 3, 1, 2)


class SegmentationHead(nn.Module):
    """Classes per pixel from patch tokens."""

    def __init__(self, dim: int, classes: int, grid: tuple[int, int], seed: int = 0) -> None:
        super().__init__()
        self.head = LinearHead(dim, classes, grid, seed)

    def logits(self, scenes: Scenes, device: str) -> Tensor:
        """(B, C, S, S)."""
        side = scenes.labels_NSS.shape[-1]
        return _upsampled(self.head(torch.from_numpy(scenes.patch_NPD).to(device)), side)

    def loss(self, scenes: Scenes, device: str) -> Tensor:
        """Mean cross entropy over the pixels that have a class; 0 if none has."""
        labels_BSS = torch.from_numpy(scenes.labels_NSS).to(device).long()
        total = F.cross_entropy(self.logits(scenes, device), labels_BSS, ignore_index=-1, reduction="sum")
        return total / (labels_BSS >= 0).sum().clamp(min=1)


class DepthHead(nn.Module):
    """Metres per pixel from patch tokens and the class token."""

    def __init__(self, dim: int, grid: tuple[int, int], max_depth: float, seed: int = 0) -> None:
        """`dim`: dimensions of patch and cls together."""
        super().__init__()
        self.head = LinearHead(dim, BINS, grid, seed)
        self.register_buffer("centres_C", torch.linspace(_LEAST_DEPTH, max_depth, BINS))

    def depth(self, scenes: Scenes, device: str) -> Tensor:
        """Metres (B, S, S), between the first and the last bin."""
        patch_BPD, cls_BD = (torch.from_numpy(x).to(device) for x in (scenes.patch_NPD, scenes.cls_ND))
        x_BPD = torch.cat([patch_BPD, cls_BD[:, None].expand(-1, patch_BPD.shape[1], -1)], dim=-1)
        logits_BCQQ = F.interpolate(self.head(x_BPD), scale_factor=_UPSAMPLED, mode="bilinear", align_corners=False)
        weight_BCQQ = F.relu(logits_BCQQ) + _FLOOR
        weight_BCQQ = weight_BCQQ / weight_BCQQ.sum(1, keepdim=True)
        depth_BQQ = torch.einsum("bcij,c->bij", weight_BCQQ, self.get_buffer("centres_C"))
        return _upsampled(depth_BQQ[:, None], scenes.labels_NSS.shape[-1])[:, 0]

    def loss(self, scenes: Scenes, device: str) -> Tensor:
        """sqrt(var(g) + .15 mean(g)²) of g = log predicted - log true, over the pixels whose depth is known."""
        true_BSS = torch.from_numpy(scenes.labels_NSS).to(device)
        known = true_BSS > _LEAST_DEPTH
        if int(known.sum()) < 2:
            return self.depth(scenes, device).sum() * 0
        g = self.depth(scenes, device)[known].log() - true_BSS[known].log()
        # The epsilon keeps the gradient of the root finite when every pixel is right.
        return (g.var() + _VARIANCE_FOCUS * g.mean().square() + 1e-8).sqrt()


def fit(
    head: SegmentationHead | DepthHead,
    batches: Iterator[Scenes],
    steps: int,
    lr: float,
    device: str,
    stop: Stop | None = None,
) -> None:
    """AdamW; the rate rises linearly in the first 3.75 % of the steps and falls linearly to 0. Leaves `head` in `eval`.

    After a stop the head is not fitted to the end.
    """
    head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=_WEIGHT_DECAY)
    warmup = max(1, round(_WARMUP * steps))
    for step in range(steps):
        if stop is not None and stop.requested:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warmup, 1 - step / steps)
        optimizer.zero_grad()
        head.loss(next(batches), device).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    head.eval()


def _upsampled(x_BCGG: Tensor, side: int) -> Tensor:
    return F.interpolate(x_BCGG, size=(side, side), mode="bilinear", align_corners=False)
