"""The projection of a CLIP image tower, as timm and as OpenAI's and open_clip's files hold it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import ResolvedEncoder, resolve_encoder
from unic_pipe.pipeline.encoders.projection import read_projection
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

TINY = EncoderConfig(
    encoder="timm:vit_tiny_patch16_224", weights="random:0", image_size=32, model_args={"depth": 1, "embed_dim": 48}
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ResolvedEncoder:
    return resolve_encoder("tiny", TINY, tmp_path_factory.mktemp("weights"), None)


def test_all_layouts_hold_the_same_projection(tiny: ResolvedEncoder, tmp_path: Path) -> None:
    weight_FE, other = torch.randn(20, 48), torch.randn(3, 3)
    layouts = {
        "timm": {"head.weight": weight_FE, "head.bias": torch.zeros(20), "cls_token": other},
        "openai": {"visual.proj": weight_FE.T.contiguous(), "visual.class_embedding": other},
        "trunk": {"visual.head.proj.weight": weight_FE, "visual.trunk.pos_embed": other},
    }
    x_ND = torch.randn(5, 48)
    for name, state in layouts.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        found = read_projection(replace(tiny, weights_path=tmp_path / f"{name}.safetensors"))
        torch.testing.assert_close(found(x_ND), x_ND @ weight_FE.T)


def test_an_encoder_without_projection_is_said(tiny: ResolvedEncoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random weights"):
        read_projection(tiny)
    save_file({"head.weight": torch.randn(20, 64)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no projection of tiny's 48 cls dimensions"):
        read_projection(replace(tiny, weights_path=tmp_path / "a.safetensors"))
