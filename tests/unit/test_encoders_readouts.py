"""Every family of timm's tokens and maps against its own head: which agree, and which differ by design.

A class token is read as such, because its makers trained it, also where timm's head takes a mean (`DIFFER`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unic_pipe.pipeline.encoders import Encoder, load_encoder, resolve_encoder
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

SMALL = {"embed_dim": 48, "depth": 1, "num_heads": 2}

READOUTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("vit_tiny_patch16_224", SMALL, 64, "vit"),
    ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}, 64, "fc-norm"),
    ("vit_tiny_patch16_224", {**SMALL, "global_pool": "max"}, 64, "head"),
    ("vit_base_patch16_siglip_224", SMALL, 64, "head"),
    ("vit_base_patch16_siglip_gap_224", SMALL, 64, "vit"),
    ("vit_pe_core_base_patch16_224", SMALL, 64, "head"),
    ("vit_pe_spatial_base_patch16_512", SMALL, 64, "vit"),
    ("vit_small_patch16_dinov3", SMALL, 64, "vit"),
    ("vit_small_patch14_reg4_dinov2", SMALL, 56, "vit"),
    ("vit_medium_patch16_reg4_gap_256", SMALL, 64, "fc-norm"),
    ("vit_so150m2_patch16_reg1_gap_256", SMALL, 64, "fc-norm"),
    ("vit_base_patch16_clip_224", SMALL, 64, "vit"),
    ("vit_relpos_small_patch16_224", SMALL, 64, "fc-norm"),
    ("vit_srelpos_small_patch16_224", SMALL, 64, "vit"),
    ("samvit_base_patch16_224", SMALL, 224, "cnn"),
    ("naflexvit_base_patch16_gap", SMALL, 64, "fc-norm"),
    ("naflexvit_base_patch16_map", SMALL, 64, "head"),
    ("naflexvit_base_patch16_siglip", SMALL, 64, "head"),
    ("beit_base_patch16_224", SMALL, 64, "fc-norm"),
    ("eva02_tiny_patch14_224", SMALL, 56, "fc-norm"),
    ("deit_tiny_distilled_patch16_224", SMALL, 64, "vit"),
    ("deit3_small_patch16_224", SMALL, 64, "vit"),
    ("cait_xxs24_224", SMALL, 64, "vit"),
    ("xcit_nano_12_p16_224", {"depth": 1}, 64, "vit"),
    ("tnt_s_legacy_patch16_224", {"depth": 1}, 224, "vit"),
    ("hiera_tiny_224", {"embed_dim": 24}, 224, "head"),
    ("levit_128s", {}, 224, "vit"),
    ("efficientformer_l1", {}, 224, "vit"),
    ("twins_svt_small", {}, 64, "vit"),
    ("flexivit_small", SMALL, 240, "vit"),
    ("swin_tiny_patch4_window7_224", {}, 224, "cnn"),
    ("pvt_v2_b0", {}, 56, "cnn"),
    ("test_convnext", {}, 64, "cnn"),
    ("test_resnet", {}, 64, "cnn"),
    ("test_maxvit", {}, 64, "cnn"),
    ("test_byobnet", {}, 64, "cnn"),
    ("test_efficientnet", {}, 64, "cnn"),
    ("test_nfnet", {}, 64, "cnn"),
    ("mobilenetv4_conv_small_035", {}, 64, "cnn"),
    ("edgenext_xx_small", {}, 64, "cnn"),
    ("repvit_m0_9", {}, 64, "cnn"),
    ("fastvit_t8", {}, 64, "cnn"),
    ("efficientvit_b0", {}, 64, "cnn"),
]

DIFFER = {"vit_pe_spatial_base_patch16_512", "vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224"}
"""Their makers' class token, where timm's head averages patch tokens, or class and distillation token."""

REFUSED = ["crossvit_tiny_240", "coat_tiny"]
"""Lists of tokens at several scales."""


def random_encoder(tmp_path: Path, name: str, model_args: dict[str, Any], size: int) -> Encoder:
    config = EncoderConfig(encoder=f"timm:{name}", weights="random:0", image_size=size, model_args=model_args)
    return load_encoder(resolve_encoder("any", config, tmp_path, None))


@pytest.mark.parametrize(("name", "model_args", "size", "readout"), READOUTS)
def test_cls_is_what_the_models_own_head_pools(
    tmp_path: Path, name: str, model_args: dict[str, Any], size: int, readout: str
) -> None:
    encoder = random_encoder(tmp_path, name, model_args, size)
    assert encoder.definition.readout == readout
    x_B3HW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        cls_BD, patch_BPD = encoder(x_B3HW)
        features = encoder.model.forward_features(x_B3HW)
        own_BD = encoder.model.forward_head(features, pre_logits=True)
    if own_BD.ndim == 4:
        own_BD = own_BD.mean(dim=(2, 3))
    assert torch.allclose(cls_BD, own_BD, rtol=1e-3, atol=1e-4) is (name not in DIFFER)
    if features.ndim == 3:
        prefix = features.shape[1] - patch_BPD.shape[1]
        assert prefix == getattr(encoder.model, "num_prefix_tokens", 0)
        assert torch.equal(patch_BPD, features[:, prefix:])
    if name in DIFFER:
        assert torch.equal(cls_BD, features[:, 0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_patch_tokens_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="neither tokens nor a feature map"):
        random_encoder(tmp_path, name, {}, 240 if "240" in name else 224)


def test_caches_that_were_read_wrongly_are_stale_with_that_reason(tmp_path: Path) -> None:
    now = random_encoder(tmp_path, "vit_base_patch16_siglip_224", SMALL, 64).definition
    before = now.model_copy(update={"readout": "vit"})
    assert digest_of(now) != digest_of(before)
    assert describe(before, now) == "readout: vit → head (what cls is)"
