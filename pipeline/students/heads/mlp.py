"""Heads that see one token at a time. Their tensors are named as in the official files.

Legend: ... any leading sizes; D width of the student, E teacher dimension.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def linear(width: int, size: int) -> nn.Linear:
    """Linear: (..., D) to (..., E) (lightly-train)."""
    return initialised(nn.Linear(width, size))


def norm_linear(width: int, size: int) -> nn.Sequential:
    """LayerNorm, Linear: (..., D) to (..., E) (Proteus, arXiv 2407.10366)."""
    return initialised(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)))


def norm_mlp(width: int, hidden: int, size: int, bias: bool = True) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: (..., D) to (..., E).

    EUPE (arXiv 2603.22387) has no `bias` in its Linears; lightly-train's has.
    """
    layers = nn.Linear(width, hidden, bias), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, size, bias)
    return initialised(nn.Sequential(*layers))


class MlpV1(nn.Module):
    """RADIO's first MLP: Linear, LayerNorm, ReLU, `inner` times the same again, Linear."""

    def __init__(self, width: int, hidden: int, size: int, inner: int = 0) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        again = ((nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()) for _ in range(inner))
        self.relu, self.inner = nn.ReLU(), nn.Sequential(*(layer for layers in again for layer in layers))
        self.fc2 = nn.Linear(hidden, size)
        initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) of (..., D)."""
        found: Tensor = self.fc2(self.inner(self.relu(self.norm(self.fc1(x)))))
        return found


class MlpV2(nn.Module):
    """RADIO's second MLP: Linear, then x + Linear(GELU(LayerNorm x)) `inner` times, LayerNorm, GELU, Linear.

    `pre_norm`: LayerNorm and GELU before all of this.
    `upsample` by u: the last Linear gives u·u tokens for one; tokens are then those of a grid u times as fine.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        size: int,
        inner: int = 0,
        pre_norm: bool = False,
        upsample: int = 1,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """`grid`: (rows, columns) of the patch tokens, to upsample them."""
        super().__init__()
        assert grid is not None or upsample == 1, "only a grid can be upsampled"
        self.upsample, self.grid = upsample, grid
        self.pre_norm = nn.Sequential(nn.LayerNorm(width), nn.GELU()) if pre_norm else nn.Identity()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(inner)
        )
        self.final = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, size * upsample**2))
        initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) of (..., D); upsampled, (B, u·rows·u·columns, E) of (B, rows·columns, D)."""
        x = self.fc1(self.pre_norm(x))
        for block in self.blocks:
            x = x + block(x)
        x = self.final(x)
        if self.upsample == 1 or self.grid is None:
            return x
        x = x.view(len(x), *self.grid, self.upsample, self.upsample, -1)
        return x.transpose(2, 3).flatten(1, 4)


def initialised(head: M) -> M:
    """The ladder's initialisation: matrices normal with std .02, truncated, biases 0."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head
