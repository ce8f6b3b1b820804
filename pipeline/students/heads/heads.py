"""Heads on a student's last rung, in the ladder's place: one for every teacher and token type.

Shapes: B images, P patch tokens, D width, E teacher dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from unic_pipe.pipeline.students.heads.block import BlockHead
from unic_pipe.pipeline.students.heads.mlp import MlpV1, MlpV2, linear, norm_linear, norm_mlp
from unic_pipe.pipeline.students.ladder import Ladder, Rungs, rungs
from unic_pipe.pipeline.students.student import RungOutputs, Student
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.heads import HEADS, LADDER, LadderConfig
from unic_pipe.schemas.losses import TokenType

_HEAD_WIDTH = 64
"""Dimensions of an attention head of `block`, as in ViTs."""

BUILDERS: dict[str, Callable[[LadderConfig, int, int], nn.Module]] = {
    "linear": lambda config, width, size: linear(width, size),
    "norm_linear": lambda config, width, size: norm_linear(width, size),
    "mlp": lambda config, width, size: norm_mlp(width, config.hidden, size, bias=False),
    "mlp_v1": lambda config, width, size: MlpV1(width, config.hidden, size, config.layers),
    "mlp_v2": lambda config, width, size: MlpV2(width, config.hidden, size, config.layers),
    "block": lambda config, width, size: BlockHead(
        width, size, heads=1 if width % _HEAD_WIDTH else width // _HEAD_WIDTH, blocks=config.layers
    ),
}
"""A head by its kind, of the student's width and the teacher's dimension."""


class Heads(nn.Module):
    """Predicts every teacher's tokens from a student's last rung, as `Ladder` does from all."""

    def __init__(
        self,
        config: LadderConfig,
        depth: int,
        widths: Mapping[TokenType, int],
        dims: Mapping[TokenType, Mapping[str, int]],
        masked: Mapping[str, int] = {},
    ) -> None:
        """Args:
        config: the kind of heads, and what shapes them.
        depth: number of the student's rungs.
        widths: D of the last one, by token type.
        dims: for each token type to predict, every teacher's dimension E in that type.
        masked: E of the teachers whose patches are also predicted of masked images, by heads that do not leave with the
            student; nor does the token that stands for masked patches.

        Raises:
            UserError: a head for both token types, where the student's have other dimensions.
        """
        super().__init__()
        self.rungs, self.finished, self.joint = (
            Rungs((depth - 1,), ()),
            HEADS[config.kind].finished,
            config.kind == "block",
        )
        self.predicted = {token: tuple(sizes) for token, sizes in dims.items()}
        build = BUILDERS[config.kind]
        if self.joint:
            sizes = _joint_sizes(widths, dims)
            self.names = tuple(sizes)
            heads = nn.ModuleList(build(config, widths["patch"], size) for size in sizes.values())
            self.heads = nn.ModuleDict({"both": heads})
        else:
            self.heads = nn.ModuleDict(
                {
                    token: nn.ModuleList(build(config, widths[token], e) for e in mine.values())
                    for token, mine in dims.items()
                }
            )

        self.masked = tuple(masked)
        if masked:
            self.masked_heads = nn.ModuleList(build(config, widths["patch"], size) for size in masked.values())
            self.mask_token = nn.Parameter(torch.zeros(widths["patch"]))

    def of_masked(self, patch_LBPD: Sequence[Tensor]) -> dict[str, Tensor]:
        """Predictions of masked images by teacher, (B, P, E), from what `inputs` gave of them."""
        return {t: head(patch_LBPD[-1]) for t, head in zip(self.masked, self.masked_heads, strict=True)}

    def forward(self, cls_LBD: Sequence[Tensor], patch_LBPD: Sequence[Tensor]) -> dict[TokenType, dict[str, Tensor]]:
        """Predictions by token type and teacher, cls (B, E) and patch (B, P, E), from what `inputs` gave."""
        inputs: dict[TokenType, Tensor] = {"cls": cls_LBD[-1], "patch": patch_LBPD[-1]}
        if not self.joint:
            return {
                token: {teacher: head(inputs[token]) for teacher, head in self.by_teacher(token).items()}
                for token in self.predicted
            }
        found: dict[TokenType, dict[str, Tensor]] = {token: {} for token in self.predicted}
        for teacher, head in self.by_teacher("both").items():
            cls_BE, patch_BPE = head(inputs["cls"], inputs["patch"])
            both: dict[TokenType, Tensor] = {"cls": cls_BE, "patch": patch_BPE}
            for token in (t for t in self.predicted if teacher in self.predicted[t]):
                found[token][teacher] = both[token]
        return found

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that are compiled, and shared out over processes, one by one."""
        masked = self.masked_heads if self.masked else ()
        return [*(head for key in self.heads for head in self.by_teacher(key).values()), *masked]

    def by_teacher(self, key: str) -> dict[str, nn.Module]:
        """The heads of a token type, or `both`, by teacher."""
        heads, names = self.heads[key], self.names if self.joint else self.predicted[key]  # type: ignore[index]
        assert isinstance(heads, nn.ModuleList)
        return dict(zip(names, heads, strict=True))

    def states(self, state: Mapping[str, Tensor] | None = None) -> dict[tuple[str, str], dict[str, Tensor]]:
        """The state of every head, by teacher and key (a token type, or `both`); `state`: of all, instead of its own."""
        whole = self.state_dict() if state is None else state
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key in self.heads:
            for i, teacher in enumerate(self.by_teacher(key)):
                start = f"heads.{key}.{i}."
                found[teacher, key] = {k.removeprefix(start): v for k, v in whole.items() if k.startswith(start)}
        return found

    def load_states(self, states: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> None:
        """Give the heads that are named other weights."""
        for (teacher, key), state in states.items():
            self.by_teacher(key)[teacher].load_state_dict(state)


def _joint_sizes(widths: Mapping[TokenType, int], dims: Mapping[TokenType, Mapping[str, int]]) -> dict[str, int]:
    """Every teacher's dimension, which both of its token types have: a definition with others is refused."""
    sizes: dict[str, int] = {}
    for mine in dims.values():
        for teacher, size in mine.items():
            if sizes.setdefault(teacher, size) != size:
                raise ValueError(f"one layer for {sizes[teacher]} and {size} dimensions of {teacher}")
    if widths["cls"] != widths["patch"]:
        raise UserError(
            f"ladder.kind: block takes cls and patch tokens of one width; the student's have {widths['cls']} and "
            f"{widths['patch']}.",
            "Choose another students.NAME.architecture, or another ladder.kind.",
        )
    return sizes


Predictor = Ladder | Heads


def build_predictor(
    config: LadderConfig,
    sizes: Mapping[TokenType, Mapping[str, int]],
    depth: int,
    widths: Mapping[TokenType, Sequence[int]],
    masked: Mapping[str, int] = {},
) -> Predictor:
    """The ladder or the heads of a student, drawn from torch's random state.

    Args:
        config: which.
        sizes: by token type, every teacher's dimension.
        depth: number of the student's rungs.
        widths: of all of its rungs, by token type.
        masked: as of `Heads`, which must be what is built.

    Raises:
        UserError: `ladder.blocks` does not fit, or a head.
    """
    if config.kind != LADDER:
        return Heads(config, depth, {token: every[-1] for token, every in widths.items()}, sizes, masked)
    chosen = rungs(config, depth)
    return Ladder(chosen, {token: [every[rung] for rung in chosen.blocks] for token, every in widths.items()}, sizes)


def inputs(student: Student, predictor: Predictor, outputs: RungOutputs) -> RungOutputs:
    """What a predictor is given of the outputs of its rungs: as they are, or as they are read after export."""
    return student.finished(outputs) if isinstance(predictor, Heads) and predictor.finished else outputs


def rotated(state: Mapping[str, Tensor], matrix_EE: Tensor) -> dict[str, Tensor]:
    """A head's state whose predictions are multiplied by a matrix (y ↦ matrix y), which its last Linear takes up.

    Heads end with that layer, so its weight is the last tensor of two dimensions.
    """
    name = [key for key, value in state.items() if value.ndim == 2][-1].removesuffix("weight")
    turned = {key: state[key] for key in (f"{name}weight", f"{name}bias") if key in state}
    return {**state, **{key: (matrix_EE @ x.double().cpu()).to(x.dtype) for key, x in turned.items()}}
