"""DUNE's head: transformer blocks over the whole sequence, then a Linear (arXiv 2503.14405; "tp" in its code).

Legend: B images, P patch tokens, D width of the student, E teacher dimension.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unic_pipe.pipeline.students.heads.mlp import initialised


class BlockHead(nn.Module):
    """Predicts a teacher's cls and patch tokens together, from the student's before its final norm."""

    def __init__(
        self,
        width: int,
        size: int,
        heads: int,
        blocks: int = 1,
        qkv_bias: bool = True,
        norm_affine: bool = True,
        layer_scale: float = 1e-4,
        scale: float | None = 1.0,
    ) -> None:
        """Args:
        width: D.
        size: E.
        heads: of the attention.
        blocks: number of ViT blocks, with LayerNorm's eps 1e-6.
        qkv_bias: the class has none by default in the official code, its configurations have.
        norm_affine: LayerNorms have weights and biases.
        layer_scale: what LayerScale starts with; 0: there is none.
        scale: factor of the result; None: it is learned and starts at 1 (0.0 in the official code).
        """
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=norm_affine)
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, qkv_bias=qkv_bias, init_values=layer_scale or None, norm_layer=norm)
                for _ in range(blocks)
            )
        )
        self.linear = nn.Linear(width, size)
        self.scale = nn.Parameter(torch.ones(1)) if scale is None else scale
        initialised(self)

    def forward(self, cls_BD: Tensor, patch_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """cls (B, E) and patch (B, P, E)."""
        y_BNE = self.linear(self.blocks(torch.cat([cls_BD[:, None], patch_BPD], dim=1))) * self.scale
        return y_BNE[:, 0], y_BNE[:, 1:]
