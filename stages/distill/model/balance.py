"""How a step's teachers are balanced: the spread of their normalised targets, and their shares of the gradient.

Spread of a teacher's tokens of one type: sqrt(mean over D of var(x)), over all tokens of the global batch, as they come from
the normaliser and before they are resampled to another grid. Targets standardized by dimension have about 1.

Share of teacher t: |g_t| / (sum over teachers u of |g_u|), where g_t is the gradient of t's part of the batch's loss, after
dropping, with respect to the student's last tokens that feed the heads, cls and patches together. It is taken there and not at
the predictions: a cosine to targets c times as large has a gradient c times as small at the prediction, which the head's larger
weights make up for. It costs a backward pass of a teacher's last head. Of a ladder it leaves out what lower rungs pass on.

Nothing that is learned from is touched: gradients are read before the backward pass, and stored nowhere.

Legend: B images, T teachers, P patch tokens, D dimensions of a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unic_pipe.schemas.config import TokenType
from unic_pipe.stages.distill.model.loss import TeacherLosses
from unic_pipe.stages.distill.model.moments import Moments, merged, moments_of


class Balance:
    """What the parts of one step's batch have shown."""

    def __init__(self, sizes: Mapping[tuple[str, TokenType], int], device: torch.device) -> None:
        """`sizes`: D by teacher and token type, in one order on all processes."""
        self.device = device
        self._parts: dict[tuple[str, TokenType], list[Moments]] = {pair: [] for pair in sizes}
        self._sizes, self._squares = sizes, dict[str, Tensor]()
        self._tokens: list[Tensor] = []

    def another(self) -> Balance:
        """One for parts that are looked at beside these."""
        return Balance(self._sizes, self.device)

    def add(self, other: Balance) -> None:
        """Count what another one has seen and read."""
        for pair, parts in other._parts.items():
            self._parts[pair] += parts
        for teacher, square in other._squares.items():
            self._squares[teacher] = self._squares[teacher] + square if teacher in self._squares else square

    @torch.no_grad()
    def see_targets(self, teacher: str, token: TokenType, x: Tensor) -> None:
        """Count normalised targets (B, D) or (B, P, D) of a part of the batch."""
        if len(x):
            self._parts[teacher, token].append(moments_of(x))

    def see_tokens(self, tokens: Sequence[Tensor]) -> None:
        """Note what the heads are given of the student's last rung, in one or several looks at a part of the batch; a student
        that stands still has no gradients there."""
        self._tokens += [x for x in tokens if x.requires_grad]

    def read_gradients(self, losses: TeacherLosses, keep_BT: Tensor) -> None:
        """Read the gradients of the part whose tokens were seen; its backward pass must still be ahead."""
        tokens, self._tokens = self._tokens, []
        loss_T = (keep_BT * losses.loss_BT).sum(0)
        for i, teacher in enumerate(losses.teachers if tokens else ()):
            found = torch.autograd.grad(loss_T[i], tokens, retain_graph=True, allow_unused=True)
            for gradient in (g for g in found if g is not None):
                square = gradient.float().square().sum()
                self._squares[teacher] = self._squares.get(teacher, torch.zeros_like(square)) + square

    def columns(self, total: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """The whole batch's `T/TOKEN/spread` and `T/gradient`, of what was seen; `total` as for `merged`."""
        found: dict[str, Tensor] = {}
        for (teacher, token), parts in self._parts.items():
            if parts or total is not None:
                nothing = torch.zeros(self._sizes[teacher, token], device=self.device)
                _, std_D = merged(parts or [(0, nothing, nothing)], total)
                found[f"{teacher}/{token}/spread"] = std_D.square().mean().sqrt()
        teachers = tuple(dict.fromkeys(teacher for teacher, _ in self._sizes))
        squares_T = torch.stack([self._squares.get(t, torch.zeros((), device=self.device)) for t in teachers])
        norms_T = (squares_T if total is None else total(squares_T)).sqrt()
        found |= dict(zip((f"{teacher}/gradient" for teacher in teachers), norms_T / norms_T.sum(), strict=True))
        values = torch.stack(list(found.values())).tolist()
        return {name: value for name, value in zip(found, values, strict=True) if math.isfinite(value)}
