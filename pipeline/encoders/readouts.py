"""The four ways to read cls and patch tokens from a timm model: what is stored of a teacher and probed of a student.

`vit`: all tokens after the final norm; cls is the class token, or the mean of the patch tokens where there is none;
register and distillation tokens are dropped. `cnn`: patch tokens are the final feature map, row by row; cls is what the
model's own head pools from it. `fc-norm`: patch tokens are those before any final norm, and cls is fc_norm of their mean.
`head`: patch tokens as for `vit`; cls is what the model's own head pools from all tokens.

Shapes: B images, H x W pixels or rows and columns of a map, P patch tokens, T tokens (prefix tokens first), D dimensions
(those of cls and of patch tokens may differ).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import Readout


class UnreadableError(UserError):
    """A model that gives neither tokens on a square grid nor a map."""


class Tokens(NamedTuple):
    """What an encoder says about a batch: `cls` (B, D) and `patch` (B, P, D)."""

    cls: torch.Tensor
    patch: torch.Tensor

    def of(self, token: TokenType) -> torch.Tensor:
        """The tokens of a type."""
        return self.cls if token == "cls" else self.patch


def probing_images(size: int, device: torch.device) -> torch.Tensor:
    """One image (1, 3, S, S) of noise: of one colour all patches might be alike, and then every way of pooling them."""
    return torch.randn(1, 3, size, size, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(device)


def features_of(model: nn.Module, x_B3HW: torch.Tensor) -> torch.Tensor:
    """A timm model's unpooled features: tokens (B, T, D), or a map brought to (B, D, rows, columns).

    Raises:
        UnreadableError: the model gives neither.
    """
    return arranged(model, model.forward_features(x_B3HW))  # type: ignore[operator]


def arranged(model: nn.Module, features: object) -> torch.Tensor:
    """What a model gave as unpooled features, with the channels of a map before its rows and columns.

    Raises:
        UnreadableError: neither tokens nor a map.
    """
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        raise UnreadableError(
            f"{type(model).__name__} gives neither tokens nor a feature map, so it can be neither teacher nor student."
        )
    if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features


def readout_of(model: nn.Module, features: torch.Tensor) -> Readout:
    """Which readout fits a model, from what `features_of` gave for images that are not of one colour.

    Attention pooling is the summary that its makers trained. A class token without one is, too, even where timm's head
    would take a mean (DINOv3). Of a model with neither, cls is the mean of its patch tokens if its head agrees.
    """
    if features.ndim == 4:
        return "cnn"
    if getattr(model, "attn_pool", None) is not None:
        return "head"
    fc_norm = getattr(model, "fc_norm", None)
    mean_BD = features[:, _prefix(model) :].mean(dim=1)
    if isinstance(fc_norm, nn.Module) and not isinstance(fc_norm, nn.Identity):
        return "fc-norm" if _pools_as(model, features, fc_norm(mean_BD)) else "head"
    return "vit" if has_class_token(model) or _pools_as(model, features, mean_BD) else "head"


def fits(model: nn.Module, features: torch.Tensor, readout: Readout) -> bool:
    """Whether a readout can be made of such features."""
    norm = isinstance(getattr(model, "fc_norm", None), nn.Module)
    return (readout == "cnn") is (features.ndim == 4) and (readout != "fc-norm" or norm)


def own_pooling(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """(B, D): what a model's own head makes of its features before the classifier."""
    pooled: torch.Tensor = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return pooled


def pooling_of(model: nn.Module, readout: Readout) -> str:
    """What cls is, in words."""
    if readout == "vit":
        return "class token" if has_class_token(model) else "mean of the patch tokens"
    if readout == "head":
        return "attention pooling" if getattr(model, "attn_pool", None) is not None else "the model's own head"
    return "pooled map" if readout == "cnn" else "fc_norm of the mean patch token"


def _pools_as(model: nn.Module, features: torch.Tensor, expected_BD: torch.Tensor) -> bool:
    """Whether a model's own head gives this; also for heads that take something else than features."""
    try:
        pooled: object = own_pooling(model, features)
    except (TypeError, AttributeError):
        return True
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2:
        return True
    if pooled.shape != expected_BD.shape:
        return False
    if pooled.is_meta:
        return True
    return torch.allclose(pooled, expected_BD, rtol=1e-3, atol=1e-4, equal_nan=True)


def grid_of(model: nn.Module, features: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patch tokens; vision transformers see square images here.

    Raises:
        UnreadableError: the tokens are not a square grid.
    """
    if features.ndim == 4:
        return features.shape[2], features.shape[3]
    patches = features.shape[1] - _prefix(model)
    side = math.isqrt(patches)
    if side * side != patches:
        raise UnreadableError(f"{type(model).__name__}: {patches} patch tokens are not a square grid.")
    return side, side


def read_tokens(model: nn.Module, features: torch.Tensor, readout: Readout) -> Tokens:
    """The tokens that a readout makes of what `features_of` gave, in the precision that they come in."""
    if readout == "cnn":
        return _read_map(model, features)
    patch_BPD = features[:, _prefix(model) :]
    if readout == "fc-norm":
        return Tokens(model.fc_norm(patch_BPD.mean(dim=1)), patch_BPD)  # type: ignore[operator]
    if readout == "head":
        return Tokens(own_pooling(model, features), patch_BPD)
    return Tokens(features[:, 0] if has_class_token(model) else patch_BPD.mean(dim=1), patch_BPD)


def _read_map(model: nn.Module, map_BDHW: torch.Tensor) -> Tokens:
    given = map_BDHW.permute(0, 2, 3, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else map_BDHW
    pooled = own_pooling(model, given)
    cls_BD = pooled if pooled.ndim == 2 else map_BDHW.mean(dim=(2, 3))
    return Tokens(cls_BD, map_BDHW.flatten(2).transpose(1, 2))


def _prefix(model: nn.Module) -> int:
    return int(getattr(model, "num_prefix_tokens", 0))


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token of a model's features sums up the image."""
    return _prefix(model) > 0 and getattr(model, "cls_token", None) is not None
