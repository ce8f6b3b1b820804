"""Students that are vision transformers, whose rungs are their blocks.

Shapes: B images, S image side in pixels, P patch tokens, D width, L rungs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from unic_pipe.pipeline.students.staged import StagedStudent
from unic_pipe.pipeline.students.student import RungOutputs, Student


def resampled(encoder: Any, state: Mapping[str, Tensor], grid: tuple[int, int]) -> tuple[Mapping[str, Tensor], str]:
    """A state whose position embedding fits an encoder's grid (bicubic where it did not), and a remark on it."""
    found, wanted = state.get("pos_embed"), encoder.state_dict().get("pos_embed")
    if found is None or wanted is None or found.shape == wanted.shape:
        return state, ""
    prefix = wanted.shape[1] - grid[0] * grid[1]
    fitting = resample_abs_pos_embed(found, list(grid), num_prefix_tokens=prefix)
    return {**state, "pos_embed": fitting}, f"; position embedding resampled to {grid[0]} × {grid[1]}"


class ViTStudent(Student):
    """A timm vision transformer with a CLS token. Rungs are its blocks, read before the final norm."""

    readout = "vit"

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        widths = (int(encoder.embed_dim),) * len(encoder.blocks)
        self.widths = {"cls": widths, "patch": widths}
        rows, columns = encoder.patch_embed.grid_size
        self.grid = int(rows), int(columns)

    @property
    def parts(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.encoder.blocks)

    def rung_outputs(self, x_B3SS: Tensor, rungs: tuple[int, ...]) -> RungOutputs:
        """Outputs of the blocks; register tokens are left out."""
        pairs = self.encoder.forward_intermediates(
            x_B3SS, indices=list(rungs), return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        return RungOutputs([prefix[:, 0] for _, prefix in pairs], [patch for patch, _ in pairs])

    def require_patches(self) -> None:
        """It has some."""

    @contextmanager
    def masked(self, mask_BP: Tensor, token_D: Tensor) -> Iterator[None]:
        """A context in which it sees a token in place of the embeddings of some patches, before their positions are added."""

        def mask(module: nn.Module, inputs: object, x_BxD: Tensor) -> Tensor:
            del module, inputs
            return torch.where(mask_BP.view(*x_BxD.shape[:-1], 1), token_D.to(x_BxD.dtype), x_BxD)

        handle = self.encoder.patch_embed.register_forward_hook(mask)
        try:
            yield
        finally:
            handle.remove()

    def finished(self, outputs: RungOutputs) -> RungOutputs:
        """The last block's tokens after the final norm."""
        norm = self.encoder.norm
        return RungOutputs([norm(outputs.cls_LBD[-1])], [norm(outputs.patch_LBPD[-1])])

    def fitted(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
        """With the position embedding resampled (bicubic) where the grids differ."""
        return resampled(self.encoder, state, self.grid)


class PooledViTStudent(StagedStudent):
    """A timm vision transformer whose blocks give no CLS token. Rungs are its blocks, whose cls is the mean of their patch
    tokens; the last one is read as after export, by the model's own pooling or by a CLS token that comes late (CaiT)."""

    def __init__(self, encoder: Any, image_size: int) -> None:
        super().__init__(encoder, image_size, rungs=len(encoder.blocks))

    def fitted(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
        """With the position embedding resampled (bicubic) where the grids differ."""
        return resampled(self.encoder, state, self.grid)
