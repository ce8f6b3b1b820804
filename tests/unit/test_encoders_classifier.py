"""The classifier of a teacher's weights, held against the model's own logits; what has none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import ResolvedEncoder, load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.classifier import agreement, read_classifier
from unic_pipe.pipeline.encoders.models import build_whole
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError


def vit(folder: Path, bias: float = 0.3, **model_args: Any) -> ResolvedEncoder:
    """A tiny ViT of seven classes with random weights, as a file."""
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, **model_args}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, **sizes)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    torch.nn.init.constant_(model.head.bias, bias)
    save_file(model.state_dict(), folder / "vit.safetensors")
    config = EncoderConfig(
        encoder="timm:vit_tiny_patch16_224", weights="vit.safetensors", model_args=sizes, image_size=32
    )
    return resolve_encoder("vit", config, folder, None)


def test_lite0s_classifier_gives_its_own_logits_of_its_cls() -> None:
    """Of real weights: what is cached as cls are the pooled features before the classifier."""
    encoder = resolve_encoder("lite0", EncoderConfig(encoder="lite0"), Path("weights"), None)
    weights_CD = read_classifier(encoder)
    assert encoder.weights_path is not None
    whole = build_whole(encoder.definition, encoder.weights_path).eval()
    x = torch.randn(3, 3, encoder.definition.image_size, encoder.definition.image_size)
    with torch.no_grad():
        expected_BC, cls_BD = whole(x), load_encoder(encoder)(x).cls.double()
    found_BC = cls_BD @ torch.from_numpy(weights_CD[:, :-1]).T + torch.from_numpy(weights_CD[:, -1])
    assert weights_CD.shape == (1000, 1281)
    torch.testing.assert_close(found_BC.float(), expected_BC, rtol=1e-4, atol=1e-4)


def test_a_vits_classifier(tmp_path: Path) -> None:
    encoder = vit(tmp_path)
    assert read_classifier(encoder).shape == (7, 33)


@pytest.mark.parametrize(
    ("bias", "model_args", "words"),
    [(0.0, {}, "space of texts"), (0.3, {"global_pool": "avg", "fc_norm": False}, "another summary")],
)
def test_a_projection_and_a_classifier_of_something_else_are_refused(
    bias: float, model_args: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"Teacher vit has no classifier of its cls: .*{words}"):
        read_classifier(vit(tmp_path, bias, **model_args))


def test_random_weights_have_no_classifier() -> None:
    config = EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random:0", image_size=32)
    with pytest.raises(UserError, match="its weights are random"):
        read_classifier(resolve_encoder("vit", config, Path("weights"), None))


def test_agreement_is_about_the_first_class() -> None:
    weights_CD = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    exact_ND = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.4]], np.float32)
    assert agreement(weights_CD, exact_ND, exact_ND) == 1
    assert agreement(weights_CD, exact_ND + np.float32([0, 0.2]), exact_ND) == pytest.approx(2 / 3)
