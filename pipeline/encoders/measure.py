"""Measuring what an encoder's tokens look like, by one forward pass: readout, dimensions and grid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unic_pipe.pipeline.encoders.encoder import Encoder, features_of, grid_of, readout_of
from unic_pipe.pipeline.encoders.models import build
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition


def measured(draft: EncoderDefinition, path: Path | None) -> EncoderDefinition:
    """Complete a definition with readout, token dimensions and grid, by one forward pass of the loaded encoder.

    Raises:
        UserError: the weights do not fit, or the model refuses images of this size.
    """
    model = build(draft, path).eval()
    size = draft.image_size
    patch = _patch_size(model)
    if size % patch:
        raise UserError(
            f"{draft.architecture}: image_size {size} is not a multiple of its patch size, {patch}; the rest of the image"
            " would be cut off.",
            f"Use {max(patch, size // patch * patch)} or {(size // patch + 1) * patch}.",
        )
    x_13HW = torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        try:
            features = features_of(model, x_13HW)
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"{draft.architecture} does not take images of {size} x {size} pixels: {error}.",
                "Set image_size to one that it takes.",
            ) from None
        definition = draft.model_copy(update={"readout": readout_of(model, features), "grid": grid_of(model, features)})
        tokens = Encoder(model, definition)(x_13HW)
    return definition.model_copy(update={"cls_dim": tokens.cls.shape[1], "patch_dim": tokens.patch.shape[2]})


def _patch_size(model: nn.Module) -> int:
    """Pixels per patch where timm would silently cut off what does not fill one; 1 where it pads or has no patches."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not isinstance(patch, tuple) or getattr(embed, "dynamic_img_pad", False):
        return 1
    return int(patch[0])
