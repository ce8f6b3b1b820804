"""Measuring what an encoder's tokens look like, by one forward pass: readout, dimensions and grid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unic_pipe.pipeline.encoders.choose import Chosen, choose_weights
from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.models import build
from unic_pipe.pipeline.encoders.readouts import (
    Tokens,
    features_of,
    fits,
    grid_of,
    pooling_of,
    probing_images,
    readout_of,
)
from unic_pipe.schemas.encoders import EncoderReading
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition, Readout


def measured(
    name: str,
    draft: EncoderDefinition,
    path: Path | None,
    prefix: str | None = None,
    readout: Readout | None = None,
) -> tuple[EncoderDefinition, EncoderReading]:
    """Complete a definition with section, readout, token dimensions and grid, by one forward pass of the encoder.

    `name` is the encoder's for messages, `prefix` the one that the user gives, `readout` the one that is
    known; otherwise it is found by what the model's own head does.

    Raises:
        UserError: the weights do not fit, the model refuses colour images of this size, or its features mean nothing.
    """
    chosen = Chosen(build(draft, None), None, "", ()) if path is None else choose_weights(draft, path, prefix)
    model = chosen.model.eval()
    if path is not None:
        _require_statistics(name, model)
    size = draft.image_size
    patch = patch_size(model)
    if size % patch:
        raise UserError(
            f"{draft.architecture}: image_size {size} is not a multiple of its patch size, {patch}; the rest of the image"
            " would be cut off.",
            f"Use {max(patch, size // patch * patch)} or {(size // patch + 1) * patch}.",
        )
    x_13HW = probing_images(size, torch.device("cpu"))
    with torch.inference_mode():
        try:
            features = features_of(model, x_13HW)
        except UserError:
            raise
        except Exception as error:  # what networks say of images that they do not take is of many kinds
            if (channels := _input_channels(model)) != 3:
                raise UserError(
                    f"{name} has {channels} input channel{'s' if channels > 1 else ''}; images have 3.",
                    "Use weights that were trained on colour images, and leave in_chans out of model_args.",
                ) from None
            why = f": {error}" if str(error) else ""
            raise UserError(
                f"{draft.architecture} does not take images of {size} x {size} pixels{why}.",
                "Set image_size to one that it takes.",
            ) from None
        readout = readout or readout_of(model, features)
        if not fits(model, features, readout):
            raise UserError(
                f"{name}: its config.json says readout {readout}, which {draft.architecture} does not have.",
                "Export the student again.",
            )
        found = {"section": chosen.section, "readout": readout, "grid": grid_of(model, features)}
        definition = draft.model_copy(update=found)
        tokens = Encoder(model, definition)(torch.cat([x_13HW, -x_13HW]))
    if path is not None:  # some networks give constants as they are initialised
        _require_alive(name, tokens)
    definition = definition.model_copy(update={"cls_dim": tokens.cls.shape[1], "patch_dim": tokens.patch.shape[2]})
    reading = EncoderReading(
        section=chosen.shown,
        beside=chosen.beside,
        pooling=pooling_of(model, definition.readout),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        untouched_statistics=path is not None and _untouched(model),
    )
    return definition, reading


def _require_statistics(name: str, model: nn.Module) -> None:
    """Single channels may have died; a whole layer whose inputs never varied was not written.

    Raises:
        UserError: every variance that BatchNorm recorded in a layer is zero.
    """
    norms = _norms(model)
    empty = [layer for layer, (_, variances) in norms.items() if not variances.any()]
    if empty:
        raise UserError(
            f"{name}: the variances that BatchNorm recorded are all zero in {len(empty)} of {len(norms)} layers (first: "
            f"{empty[0]}): its weights were written by half.",
            "Download or export the weights again; where the file holds several sets, name the right one with `prefix:`.",
        )


def _untouched(model: nn.Module) -> bool:
    """Whether a model has BatchNorm whose statistics are those from before any training: mean 0, variance 1."""
    norms = _norms(model).values()
    return bool(norms) and not any(means.any() or (variances != 1).any() for means, variances in norms)


def _norms(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Running means and variances of all layers that record them, by the layers' names."""
    found = {
        name: (getattr(m, "running_mean", None), getattr(m, "running_var", None)) for name, m in model.named_modules()
    }
    return {name: (mean, var) for name, (mean, var) in found.items() if mean is not None and var is not None}


def _require_alive(name: str, tokens: Tokens) -> None:
    """Look at the features of two images.

    Raises:
        UserError: they are not finite, or the same, as those of weights that are all zero.
    """
    if not all(token.isfinite().all() for token in tokens):
        raise UserError(
            f"{name} gives NaN or infinite features for any image: its weights are damaged.",
            "Download or export the weights again.",
        )
    if all(torch.allclose(token[0], token[1], rtol=1e-5, atol=0) for token in tokens):
        raise UserError(
            f"{name} gives the same features for every image: its weights are all zero, constant or damaged.",
            "Download or export the weights again; where the file holds several sets, name the right one with `prefix:`.",
        )


def _input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution, or else 3."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def patch_size(model: nn.Module) -> int:
    """Pixels per patch where timm would silently cut off what does not fill one; 1 where it pads, or patches overlap."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    stride = getattr(getattr(embed, "proj", None), "stride", patch)
    if not isinstance(patch, tuple) or getattr(embed, "dynamic_img_pad", False) or stride != patch:
        return 1
    return int(patch[0])
