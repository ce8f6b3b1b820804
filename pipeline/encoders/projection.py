"""The projection by which a CLIP-like image encoder enters the space of its texts.

timm keeps it as the classifier: OpenAI's and open_clip's `visual.proj` (E, F) is its `head.weight` (F, E), with a bias of
zeros; open_clip's models with a timm trunk have it as `visual.head.proj.weight`. Our encoders are built without
classifier, so it is read from the weights file.

Shapes: E dimensions of the cls feature, F dimensions of the text embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder
from unic_pipe.pipeline.encoders.sections import state_dict_of
from unic_pipe.schemas.errors import UserError

_ROWS_FIRST = ("head.weight", "visual.head.proj.weight")
_COLUMNS_FIRST = ("visual.proj", "proj")


class Projection(NamedTuple):
    """A linear map from cls features into the space of text embeddings."""

    weight_FE: Tensor
    bias_F: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Embeddings (N, F) of cls features (N, E), not normalised."""
        return F.linear(x_ND, self.weight_FE.to(x_ND.device), self.bias_F.to(x_ND.device))


def read_projection(encoder: ResolvedEncoder) -> Projection:
    """The final projection in an encoder's weights file, float32.

    Raises:
        UserError: the encoder has no file, or there is no projection of its cls features in it.
    """
    if encoder.weights_path is None:
        raise UserError(f"Encoder {encoder.name} has random weights, and so no projection into a space of texts.")
    state = state_dict_of(read_file(encoder.weights_path), encoder.weights_path, encoder.definition.section)
    weight_FE = next((state[key] for key in _ROWS_FIRST if key in state), None)
    if weight_FE is None:
        weight_FE = next((state[key].T for key in _COLUMNS_FIRST if key in state), None)
    if weight_FE is None or weight_FE.ndim != 2 or weight_FE.shape[1] != encoder.definition.cls_dim:
        raise _none(encoder, encoder.weights_path)
    bias_F = state.get("head.bias")
    if bias_F is None or len(bias_F) != len(weight_FE):
        bias_F = torch.zeros(len(weight_FE))
    return Projection(weight_FE.float().contiguous(), bias_F.float())


def _none(encoder: ResolvedEncoder, path: Path) -> UserError:
    return UserError(
        f"{path} has no projection of {encoder.name}'s {encoder.definition.cls_dim} cls dimensions into a space of texts "
        f"({', '.join((*_ROWS_FIRST, *_COLUMNS_FIRST))}).",
        "Zero-shot needs a CLIP model's whole image tower: timm's file of it holds `head.weight`.",
    )
