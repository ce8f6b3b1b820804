"""The ladder of expendable projectors (UNIC, arXiv 2408.05088, section 3.2).

For every teacher and token type, one MLP per rung of the student (Linear, GELU, Linear), fed by what that rung gives; a
teacher's prediction is the sum over rungs. All first layers of a rung are one product (they share their input), and the
sum over rungs is one product over the concatenated hidden units.

Shapes: B images, P patch tokens, ... either (B,) or (B, P); D width of a rung, E teacher dimension, H hidden width of a
rung, T teachers, L rungs of the ladder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unic_pipe.schemas.config import LadderConfig, TokenType
from unic_pipe.schemas.errors import UserError


class Projector(NamedTuple):
    """One MLP as plain tensors: the layout in which the official implementation stores it."""

    first_weight_HD: Tensor
    first_bias_H: Tensor
    second_weight_EH: Tensor
    second_bias_E: Tensor


@dataclass(frozen=True)
class Rungs:
    """Which encoder blocks feed the ladder, and how wide the projector on each is."""

    blocks: tuple[int, ...]
    hidden: tuple[int, ...]


def rungs(config: LadderConfig, depth: int) -> Rungs:
    """The ladder blocks of an encoder with `depth` blocks.

    Raises:
        UserError: a block does not exist, or is named twice.
    """
    if config.blocks == "all":
        blocks = tuple(range(depth))
    elif config.blocks == "last":
        blocks = (depth - 1,)
    else:
        blocks = tuple(sorted(config.blocks))
        if not blocks or len(set(blocks)) < len(blocks) or not all(0 <= b < depth for b in blocks):
            raise UserError(
                f"ladder.blocks: {list(config.blocks)} does not fit an encoder with {depth} blocks.",
                f"Give different block numbers between 0 and {depth - 1}, or `all`, or `last`.",
            )
    hidden = tuple(config.last_hidden if b == depth - 1 else config.hidden for b in blocks)
    return Rungs(blocks, hidden)


class Ladder(nn.Module):
    """Predicts every teacher's tokens of one or both types from the outputs of the student's blocks."""

    def __init__(
        self,
        rungs: Rungs,
        widths: Mapping[TokenType, Sequence[int]],
        dims: Mapping[TokenType, Mapping[str, int]],
    ) -> None:
        """Args:
        rungs: from `rungs()`.
        widths: for each token type, D of each of these rungs.
        dims: for each token type to predict, every teacher's dimension E in that type.
        """
        super().__init__()
        self.rungs = rungs
        self.heads = nn.ModuleDict({token: TokenLadder(rungs, widths[token], sizes) for token, sizes in dims.items()})

    def forward(self, cls_LBD: Sequence[Tensor], patch_LBPD: Sequence[Tensor]) -> dict[TokenType, dict[str, Tensor]]:
        """Predictions by token type and teacher, cls (B, E) and patch (B, P, E).

        The inputs are the outputs of the ladder's blocks (those in `rungs.blocks`), before the final norm.
        """
        inputs: dict[TokenType, Sequence[Tensor]] = {"cls": cls_LBD, "patch": patch_LBPD}
        return {token: self._head(token)(x) for token, x in inputs.items() if token in self.heads}

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that are compiled, and shared out over processes, one by one."""
        return list(self.heads.values())

    def to_projectors(self) -> dict[tuple[str, TokenType, int], Projector]:
        """Views of every projector's tensors, by (teacher, token type, place on the ladder)."""
        tokens: list[TokenType] = [t for t in ("cls", "patch") if t in self.heads]
        return {
            (teacher, token, place): projector
            for token in tokens
            for (teacher, place), projector in self._head(token).projectors().items()
        }

    def _head(self, token: TokenType) -> TokenLadder:
        head = self.heads[token]
        assert isinstance(head, TokenLadder)
        return head

    @torch.no_grad()
    def load_projectors(self, projectors: Mapping[tuple[str, TokenType, int], Projector]) -> None:
        """Copy the given tensors in; exactly the projectors of this ladder must be there."""
        mine = self.to_projectors()
        if mine.keys() != projectors.keys():
            raise ValueError(f"projectors do not match: {sorted(mine.keys() ^ projectors.keys())}")
        for key, target in mine.items():
            for into, value in zip(target, projectors[key], strict=True):
                into.copy_(value)


class TokenLadder(nn.Module):
    """The ladder of one token type."""

    def __init__(self, rungs: Rungs, widths: Sequence[int], sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.teachers, self.hidden = tuple(sizes), rungs.hidden
        self.first = nn.ModuleList(
            nn.Linear(width, len(sizes) * hidden) for width, hidden in zip(widths, rungs.hidden, strict=True)
        )
        self.second = nn.ParameterList(nn.Parameter(torch.empty(size, sum(rungs.hidden))) for size in sizes.values())
        # One bias per block, although only their sum counts: AdamW moves a sum of L biases L times as far as one.
        self.second_bias = nn.ParameterDict(
            {f"{i}_bias": nn.Parameter(torch.zeros(len(rungs.hidden), size)) for i, size in enumerate(sizes.values())}
        )
        for layer in self.first:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for weight in self.second:
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x_LxD: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predictions (..., E) of every teacher from L tensors (..., D)."""
        per_block = [layer(x).chunk(len(self.teachers), -1) for layer, x in zip(self.first, x_LxD, strict=True)]
        predictions: dict[str, Tensor] = {}
        for i, teacher in enumerate(self.teachers):
            hidden_xH = F.gelu(torch.cat([by_teacher[i] for by_teacher in per_block], dim=-1))
            predictions[teacher] = F.linear(hidden_xH, self.second[i], self.second_bias[f"{i}_bias"].sum(0))
        return predictions

    def projectors(self) -> dict[tuple[str, int], Projector]:
        """Views of the tensors of every (teacher, place)."""
        found: dict[tuple[str, int], Projector] = {}
        for i, teacher in enumerate(self.teachers):
            column = 0
            for place, (layer, hidden) in enumerate(zip(self.first, self.hidden, strict=True)):
                assert isinstance(layer, nn.Linear)
                own = slice(i * hidden, (i + 1) * hidden)
                found[teacher, place] = Projector(
                    layer.weight.detach()[own],
                    layer.bias.detach()[own],
                    self.second[i].detach()[:, column : column + hidden],
                    self.second_bias[f"{i}_bias"].detach()[place],
                )
                column += hidden
        return found
