"""Architectures of students, one or two of every kind, as small as timm makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from unic_pipe.schemas.config import StudentConfig

BLOCKS = {"embed_dim": 48, "depth": 2, "num_heads": 2}


class Family(NamedTuple):
    """One architecture, and what is known of it as a student."""

    architecture: str
    model_args: dict[str, Any]
    image_size: int
    rungs: int
    readout: str
    untrained: tuple[str, ...] = ()
    """Parameters that are exported although nothing trains them."""

    @property
    def config(self) -> StudentConfig:
        return StudentConfig(
            architecture=self.architecture, model_args=self.model_args, image_size=self.image_size, threads=1
        )


FINAL_NORM = ("norm.weight", "norm.bias")
"""What today's vision transformers are read through, after export and not in training."""
MEAN_NORM = ("fc_norm.weight", "fc_norm.bias")
"""What timm would put their mean patch token through; they learn with their class token."""

FAMILIES = [
    Family("vit_tiny_patch16_224", BLOCKS, 32, 2, "vit", FINAL_NORM),
    Family("deit3_small_patch16_224", BLOCKS, 32, 2, "vit", FINAL_NORM),
    Family("beit_base_patch16_224", BLOCKS, 32, 2, "vit", MEAN_NORM),
    Family("eva02_tiny_patch14_224", BLOCKS, 28, 2, "vit", MEAN_NORM),
    Family("vit_base_patch16_siglip_224", BLOCKS, 32, 2, "head"),
    Family("vit_medium_patch16_reg4_gap_256", BLOCKS, 32, 2, "fc-norm"),
    Family("naflexvit_base_patch16_gap", BLOCKS, 32, 2, "fc-norm"),
    Family("test_convnext", {}, 64, 5, "cnn"),
    Family("test_resnet", {}, 64, 6, "cnn"),
    Family("test_mambaout", {}, 64, 5, "cnn"),
    Family("test_efficientnet", {}, 64, 6, "cnn"),
    Family("mobilenetv4_conv_small_035", {}, 64, 6, "cnn"),
    Family("efficientvit_b0", {}, 64, 5, "cnn"),
    Family("fastvit_t8", {}, 64, 5, "cnn"),
    Family("tiny_vit_5m_224", {}, 64, 5, "cnn"),
    Family("swin_tiny_patch4_window7_224", {"embed_dim": 24}, 64, 5, "cnn"),
    Family("hiera_tiny_224", {"embed_dim": 24}, 64, 5, "head"),
    Family("levit_128s", {}, 128, 4, "vit"),
]


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Move every parameter: some are 0 at the start, and hide what lies behind them from the gradient."""
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
