"""The student: a timm model whose rungs feed the ladder.

Shapes: B images, S image side in pixels, P patch tokens, D width, L rungs, U residual branches with drop path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from timm.layers import DropPath
from torch import Tensor, nn

from unic_pipe.schemas.config import Scalar, TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import Readout


class RungOutputs(NamedTuple):
    """Outputs of the chosen rungs: L tensors (B, D), and L tensors (B, P, D)."""

    cls_LBD: list[Tensor]
    patch_LBPD: list[Tensor]


class GivenDropPath(nn.Module):
    """Drop path (stochastic depth per sample) whose uniform draws are given instead of taken from global state."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._scale_B: Tensor | None = None

    def draw(self, uniforms_B: Tensor | None) -> None:
        """Zero the branch of samples whose draw is below the rate, and scale the others by 1 / (1 - rate), next time."""
        # Here and not in `forward`, whose compiled form would be another one for every rate.
        self._scale_B = None if uniforms_B is None else (uniforms_B >= self.rate).float() / (1.0 - self.rate)

    def forward(self, x_BND: Tensor) -> Tensor:
        """The branch's output, zeroed or scaled as drawn."""
        scale_B = self._scale_B
        if scale_B is None:
            return x_BND
        if len(x_BND) != len(scale_B):
            # Parts of an image are rows of their own, one after the other (MobileViT, TNT): they share its draw.
            scale_B = scale_B.repeat_interleave(len(x_BND) // len(scale_B))
        return x_BND * scale_B.to(x_BND.dtype).view(-1, *[1] * (x_BND.ndim - 1))


class Student(nn.Module, ABC):
    """What training, export and `init` know of a network; one subclass for every kind of network.

    Its rungs are the places whose outputs may feed the ladder, numbered from 0.
    """

    widths: Mapping[TokenType, tuple[int, ...]]
    """D of every rung, by token type: the summary of a network's own head may be wider than its map."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens of every rung, of images of its own size."""
    readout: Readout
    """How tokens are read from it after export."""
    model_args: Mapping[str, Scalar]
    """The arguments with which timm builds it again for its weights."""

    def __init__(self, encoder: Any) -> None:
        """`encoder`: the timm model that is exported; its drop paths are replaced by ones whose draws are given."""
        super().__init__()
        self.encoder = encoder
        self.drop_paths = _replace_drop_paths(encoder)

    @property
    def depth(self) -> int:
        """Number of rungs."""
        return len(self.widths["cls"])

    @property
    @abstractmethod
    def parts(self) -> list[nn.Module]:
        """The modules that are compiled, and shared out over processes, one by one."""

    @abstractmethod
    def rung_outputs(self, x_B3SS: Tensor, rungs: tuple[int, ...]) -> RungOutputs:
        """Outputs of the given rungs for normalised images."""

    def fitted(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
        """What `state` gave of a student of this architecture and another image size, as far as this kind resamples it;
        and a remark on what was resampled."""
        return state, ""

    def forward(self, x_B3SS: Tensor, rungs: tuple[int, ...], drop_uniforms_BU: Tensor | None = None) -> RungOutputs:
        """Outputs of the given rungs for normalised images.

        Args:
            x_B3SS: float images.
            rungs: their numbers, ascending.
            drop_uniforms_BU: one draw per image and residual branch (U = `len(drop_paths)`); None: nothing is dropped.
        """
        for i, module in enumerate(self.drop_paths):
            module.draw(None if drop_uniforms_BU is None else drop_uniforms_BU[:, i])
        return self.rung_outputs(x_B3SS, rungs)

    def require_patches(self) -> None:
        """Raises UserError: it embeds no patches that could be masked."""
        raise UserError(
            f"Patches are masked (masked_mse), and {type(self.encoder).__name__} is no vision transformer with a class token.",
            "Choose another one for students.NAME.architecture, or other terms.",
        )

    def masked(self, mask_BP: Tensor, token_D: Tensor) -> AbstractContextManager[None]:
        """A context in which it sees a token in place of the embeddings of some patches. Raises UserError, as above."""
        del mask_BP, token_D
        self.require_patches()
        return nullcontext()

    def finished(self, outputs: RungOutputs) -> RungOutputs:
        """The last rung's outputs as they are read after export."""
        return outputs

    def grid_of(self, outputs: RungOutputs) -> tuple[int, int]:
        """Rows and columns of the patch tokens of every rung, of square images of any size."""
        patches = outputs.patch_LBPD[0].shape[1]
        return self.grid if patches == self.grid[0] * self.grid[1] else (math.isqrt(patches),) * 2

    def state(self) -> dict[str, Tensor]:
        """The encoder's weights, as checkpoints and exports keep them."""
        found: dict[str, Tensor] = self.encoder.state_dict()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights that `state` gave."""
        self.encoder.load_state_dict(state)


def _replace_drop_paths(encoder: nn.Module) -> list[GivenDropPath]:
    replaced: list[GivenDropPath] = []
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                module = GivenDropPath(float(child.drop_prob or 0.0))
                setattr(parent, name, module)
                replaced.append(module)
    return replaced
