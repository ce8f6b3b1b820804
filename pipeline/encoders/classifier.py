"""The classifier in a teacher's weights file: a matrix over its cls, and a bias.

Our encoders are built without it. It is read with the model as the file has it, and only where it gives that model's own
logits of what we call cls: not where a head takes another summary.

Shapes: C classes, D dimensions of cls.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from unic_pipe.pipeline.encoders.models import build_whole
from unic_pipe.pipeline.encoders.readouts import features_of, probing_images, read_tokens
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder
from unic_pipe.schemas.errors import UserError

TOLERANCE = 1e-3
"""Of the largest logit: what is left where the two are computed in another order."""


def read_classifier(encoder: ResolvedEncoder) -> NDArray[np.float64]:
    """The classifier of an encoder's weights, and the biases in a last column, (C, D + 1).

    Raises:
        UserError: there is none, or it takes something else than the encoder's cls.
    """
    definition = encoder.definition
    if encoder.weights_path is None:
        raise _none(encoder, "its weights are random")
    model = build_whole(definition, encoder.weights_path).eval()
    layer = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight[0].numel() != definition.cls_dim:
        raise _none(encoder, f"there is none in {encoder.weights_path}")
    if layer.bias is None or not layer.bias.any():
        raise _none(
            encoder, "what stands for one in its weights has no biases, as a projection into a space of texts has"
        )
    weight_CD = layer.weight.detach().float().flatten(1)
    bias_C = layer.bias.detach().float()
    with torch.no_grad():
        x_B3SS = probing_images(definition.image_size, torch.device("cpu"))
        cls_BD, _ = read_tokens(model, features_of(model, x_B3SS), definition.readout)
        expected_BC, found_BC = model(x_B3SS), F.linear(cls_BD.float(), weight_CD, bias_C)
    if (expected_BC - found_BC).abs().max() > TOLERANCE * expected_BC.abs().max():
        raise _none(encoder, "the one in its weights takes another summary than its cls")
    return torch.column_stack([weight_CD, bias_C]).double().numpy()


def agreement(weights_CD: NDArray[np.float64], stored_ND: NDArray[np.float32], exact_ND: NDArray[np.float32]) -> float:
    """In which part of N images stored cls tokens give the same first class as exact ones: what a codec costs logits."""
    first = [(x_ND @ weights_CD[:, :-1].T + weights_CD[:, -1]).argmax(1) for x_ND in (stored_ND, exact_ND)]
    return float((first[0] == first[1]).mean())


def _none(encoder: ResolvedEncoder, why: str) -> UserError:
    return UserError(
        f"Teacher {encoder.name} has no classifier of its cls: {why}.",
        "Take it out of the terms about logits (kl, soft_ce), or out of the student's teachers.",
    )
