"""Loading encoders: the weights that were resolved, checked by digest."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.models import build
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder, resolve_encoder
from unic_pipe.pipeline.encoders.typed import typed_choice
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import StageError


def load_encoder(
    spec: ResolvedEncoder | str | Path,
    device: str | torch.device = "cpu",
    weights_dir: Path | str = "weights",
    image_size: int | None = None,
) -> Encoder:
    """A frozen encoder in evaluation mode on `device`: called with normalised images (B, 3, S, S), as its `transform`
    makes them, it gives `cls` (B, D) and `patch` (B, P, D), float32.

    `spec` is a resolved encoder, a registry name, `timm:NAME`, `checkpoint:PATH`, or the path of a weights file or of
    an exported student's folder. `weights_dir` is searched first for the weights of a name. `image_size`: S in pixels;
    the encoder's own by default (a resolved encoder has its own).

    Raises:
        UserError: unknown name, weights that are missing or do not fit.
        StageError: the weights file is not the one that was resolved.
    """
    if not isinstance(spec, ResolvedEncoder):
        choice = typed_choice(str(spec), Path(weights_dir))
        spec = resolve_encoder(str(spec), EncoderConfig(encoder=choice, image_size=image_size), Path(weights_dir), None)
    definition, path = spec.definition, spec.weights_path
    if path is not None:
        _same_file(spec.name, path, definition.weights)
    return Encoder(build(definition, path), definition).to(device)


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
            # Where time and size are those of the file before, the same command would believe its digest again.
            f"touch {shlex.quote(str(path))}, then run the command again: it will plan with the file that is there now.",
        )
