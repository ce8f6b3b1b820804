"""Loading encoders, and measuring what their tokens look like."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unic_pipe.pipeline.encoders.encoder import Encoder, features_of, grid_of, readout_of
from unic_pipe.pipeline.encoders.models import build
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder, resolve_encoder
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import EncoderDefinition


def load_encoder(
    spec: ResolvedEncoder | str, device: str | torch.device = "cpu", weights_dir: Path | str = "weights"
) -> Encoder:
    """A frozen encoder in evaluation mode on `device`.

    `spec` is a resolved encoder, a registry name, `timm:NAME`, `checkpoint:PATH`, or the path of a weights file or of
    an exported student's folder. `weights_dir` is searched first for the weights of a name.

    Raises:
        UserError: unknown name, weights that are missing or do not fit.
        StageError: the weights file is not the one that was resolved.
    """
    if isinstance(spec, str):
        choice = f"checkpoint:{spec}" if Path(spec).exists() and ":" not in spec else spec
        spec = resolve_encoder(spec, EncoderConfig(encoder=choice), Path(weights_dir), None)
    definition, path = spec.definition, spec.weights_path
    if path is not None:
        _same_file(spec.name, path, definition.weights)
    return Encoder(build(definition, path), definition).to(device)


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


def _same_file(name: str, path: Path, digest: str) -> None:
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise StageError(
            f"Encoder {name}: cannot read {path} ({error.strerror}).", "Put the file back, or run the command again."
        ) from error
    if found != digest:
        raise StageError(
            f"Encoder {name}: {path} changed while it was in use (weights {found[:8]}, expected {digest[:8]}).",
            "Run the command again: it will plan with the file that is there now.",
        )
