"""The student: a timm model whose rungs feed the ladder.

Shapes: B images, S image side in pixels, P patch tokens, D width, L rungs, U residual branches with drop path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from unic_pipe.schemas.arguments import require_arguments
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError, did_you_mean


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
        if self._scale_B is None:
            return x_BND
        return x_BND * self._scale_B.to(x_BND.dtype).view(-1, *[1] * (x_BND.ndim - 1))


class Student(nn.Module, ABC):
    """What training, export and `init` know of a network; one subclass for every kind of network.

    Its rungs are the places whose outputs may feed the ladder, numbered from 0.
    """

    widths: tuple[int, ...]
    """D of every rung."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens of every rung."""

    def __init__(self, encoder: Any) -> None:
        """`encoder`: the timm model that is exported; its drop paths are replaced by ones whose draws are given."""
        super().__init__()
        self.encoder = encoder
        self.drop_paths = _replace_drop_paths(encoder)

    @property
    @abstractmethod
    def parts(self) -> list[nn.Module]:
        """The modules that are compiled, and shared out over processes, one by one."""

    @abstractmethod
    def rung_outputs(self, x_B3SS: Tensor, rungs: tuple[int, ...]) -> RungOutputs:
        """Outputs of the given rungs for normalised images."""

    @abstractmethod
    def start_from(self, state: Mapping[str, Tensor]) -> str:
        """Load what `state` gave of a student of this architecture and any image size; a remark on what was resampled."""

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

    def state(self) -> dict[str, Tensor]:
        """The encoder's weights, as checkpoints and exports keep them."""
        found: dict[str, Tensor] = self.encoder.state_dict()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights that `state` gave."""
        self.encoder.load_state_dict(state)


class ViTStudent(Student):
    """A timm vision transformer with a CLS token. Rungs are its blocks, read before the final norm."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        self.widths = (int(encoder.embed_dim),) * len(encoder.blocks)
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

    def start_from(self, state: Mapping[str, Tensor]) -> str:
        """Load the weights; the position embedding is resampled (bicubic) where the grids differ."""
        found, wanted, remark = state.get("pos_embed"), self.encoder.pos_embed, ""
        if found is not None and wanted is not None and found.shape != wanted.shape:
            prefix = 0 if self.encoder.no_embed_class else self.encoder.num_prefix_tokens
            resampled = resample_abs_pos_embed(found, list(self.grid), num_prefix_tokens=prefix)
            state = {**state, "pos_embed": resampled}
            remark = f"; position embedding resampled to {self.grid[0]} × {self.grid[1]}"
        self.load(state)
        return remark


def build_student(config: StudentConfig) -> Student:
    """The student at its seeded random initialisation, on the CPU, in training mode; global random state is kept.

    Raises:
        UserError: no such architecture, not a ViT with a CLS token, or settings that it does not take.
    """
    require_arguments(config.architecture, config.model_args)
    arguments: dict[str, Any] = {"img_size": config.image_size, "drop_path_rate": config.drop_path, **config.model_args}
    _refuse_random_layers(config)
    if not timm.is_model(config.architecture):
        near = did_you_mean(config.architecture, timm.list_models())
        raise UserError(
            f"Student architecture {config.architecture}: timm has no such model{near if near.startswith(';') else '.'}",
            "Correct students.NAME.architecture, for instance to vit_small_patch16_224.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            vit = timm.create_model(config.architecture, pretrained=False, num_classes=0, **arguments)
        except TypeError as error:
            _check_vit(config, None)
            raise UserError(
                f"Student architecture {config.architecture} does not take these arguments: {error}.",
                "Check students.NAME.architecture and model_args; the student must be a timm vision transformer.",
            ) from None
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"Student architecture {config.architecture} cannot be built: {error}.",
                "Check students.NAME.architecture, image_size and model_args.",
            ) from None
        _check_vit(config, vit)
        return ViTStudent(vit)


def _check_vit(config: StudentConfig, vit: Any) -> None:
    names = ("blocks", "cls_token", "forward_intermediates", "patch_embed", "num_prefix_tokens")
    if vit is not None and all(getattr(vit, name, None) is not None for name in names):
        return
    if vit is None and config.architecture.split("_")[0] in {"vit", "deit", "deit3", "beit", "beitv2", "eva02"}:
        return
    raise UserError(
        f"A student must be a vision transformer with a CLS token; {config.architecture} is not.",
        "Choose a timm ViT for students.NAME.architecture, for instance vit_small_patch16_224. CNNs can be teachers.",
    )


def _refuse_random_layers(config: StudentConfig) -> None:
    if "drop_path_rate" in config.model_args:
        raise UserError("model_args.drop_path_rate: use students.NAME.drop_path instead.")
    rates = [key for key, value in config.model_args.items() if key.endswith("drop_rate") and value]
    if rates:
        raise UserError(
            f"model_args.{rates[0]}: dropout draws from global random state, which a resumed run cannot repeat.",
            "Leave it out; students.NAME.drop_path regularises and resumes exactly.",
        )


def _replace_drop_paths(encoder: nn.Module) -> list[GivenDropPath]:
    replaced: list[GivenDropPath] = []
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                module = GivenDropPath(float(child.drop_prob or 0.0))
                setattr(parent, name, module)
                replaced.append(module)
    return replaced
