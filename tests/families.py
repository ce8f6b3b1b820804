"""Every family of timm's models at tiny size: how each is read, which differ from their own heads, which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unic_pipe.pipeline.encoders import Encoder, load_encoder, resolve_encoder
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

Family = tuple[str, dict[str, Any], int, str]
"""timm's name, model_args, image size, and the readout (of those that are refused: the words)."""

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 2}
_AVG, _MAX = ({**TINY, "global_pool": pool} for pool in ("avg", "max"))

QUICK: list[Family] = [
    ("vit_tiny_patch16_224", TINY, 64, "vit"),
    ("vit_tiny_patch16_224", _AVG, 64, "fc-norm"),
    ("vit_tiny_patch16_224", _MAX, 64, "head"),
    ("vit_base_patch16_siglip_224", TINY, 64, "head"),
    ("vit_base_patch16_siglip_gap_224", TINY, 64, "vit"),
    ("vit_so150m_patch16_reg4_map_256", TINY, 64, "head"),
    ("vit_medium_patch16_reg4_gap_256", TINY, 64, "fc-norm"),
    ("vit_so150m2_patch16_reg1_gap_256", TINY, 64, "fc-norm"),
    ("vit_base_patch16_clip_224", TINY, 64, "vit"),
    ("vit_small_patch14_reg4_dinov2", TINY, 56, "vit"),
    ("vit_base_patch14_reg1_tipsv2", TINY, 56, "vit"),
    ("vit_base_patch16_radio_v3", TINY, 64, "class-tokens"),
    ("vit_so400m_patch16_radio_v4", TINY, 64, "class-tokens"),
    ("aimv2_large_patch14_224", TINY, 56, "vit"),
    ("beit3_base_patch16_224", TINY, 64, "fc-norm"),
    ("flexivit_small", TINY, 240, "vit"),
    ("vit_tiny_r_s16_p8_224", TINY, 64, "vit"),
    ("vit_relpos_small_patch16_224", TINY, 64, "fc-norm"),
    ("vit_relpos_base_patch16_cls_224", TINY, 64, "vit"),
    ("vit_srelpos_small_patch16_224", TINY, 64, "vit"),
    ("samvit_base_patch16_224", TINY, 224, "cnn"),
    ("naflexvit_base_patch16_gap", TINY, 64, "fc-norm"),
    ("naflexvit_base_patch16_map", TINY, 64, "head"),
    ("naflexvit_base_patch16_siglip", TINY, 64, "head"),
    ("naflexvit_base_patch16_radio_v3", TINY, 64, "class-tokens"),
    ("beit_base_patch16_224", TINY, 64, "fc-norm"),
    ("beitv2_base_patch16_224", TINY, 64, "fc-norm"),
    ("eva02_tiny_patch14_224", TINY, 56, "fc-norm"),
    ("eva02_base_patch16_clip_224", TINY, 64, "vit"),
    ("vit_small_patch16_dinov3", TINY, 64, "vit"),
    ("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", TINY, 64, "vit"),
    ("vit_small_patch16_lingbot", TINY, 64, "vit"),
    ("vit_small_patch16_rope_224", TINY, 64, "vit"),
    ("vit_pe_core_tiny_patch16_384", TINY, 64, "head"),
    ("vit_pe_spatial_tiny_patch16_512", TINY, 64, "vit"),
    ("vit_pe_lang_large_patch14_448", TINY, 56, "vit"),
    ("deit_tiny_distilled_patch16_224", TINY, 64, "vit"),
    ("deit3_small_patch16_224", TINY, 64, "vit"),
    ("cait_xxs24_224", TINY, 64, "vit"),
    ("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, 64, "vit"),
    ("xcit_nano_12_p16_224", {"depth": 1}, 64, "vit"),
    ("tnt_s_legacy_patch16_224", {"depth": 1}, 224, "vit"),
    ("hiera_tiny_224", {"embed_dim": 24}, 224, "head"),
    ("levit_128s", {}, 224, "vit"),
    ("qwen3_vit_88m", TINY, 64, "cnn"),
    ("convnext_atto", {}, 64, "cnn"),
    ("test_convnext", {}, 64, "cnn"),
    ("test_resnet", {}, 64, "cnn"),
    ("test_maxvit", {}, 64, "cnn"),
    ("test_byobnet", {}, 64, "cnn"),
    ("test_efficientnet", {}, 64, "cnn"),
    ("test_nfnet", {}, 64, "cnn"),
    ("test_mambaout", {}, 64, "cnn"),
    ("mobilenetv4_conv_small_035", {}, 64, "cnn"),
    ("pvt_v2_b0", {}, 64, "cnn"),
    ("efficientvit_b0", {}, 64, "cnn"),
    ("starnet_s050", {}, 64, "cnn"),
]
"""One of every way in which vision transformers pool, and the smallest networks with maps; a second each at most."""

_MAPS_64 = """
    botnet26t_256 lambda_resnet26t resnet50_clip repvgg_a0 convmixer_768_32 cpubone_nano csatv2 cspresnet50
    cspnext_tiny davit_tiny densenet121 dla46_c dpn48b edgenext_xx_small focalnet_tiny_srf mixnet_s efficientvit_l1 fasternet_t0
    fastvit_t8 fastvit_mci0 ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto
    lcnetv2_small lowformer_b0 test_coatnet poolformer_s12 caformer_s18 mobilenetv3_small_050 mobilevit_xxs
    mobilevitv2_050 nasnetalarge nextvit_small pnasnet5large rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9
    res2net50_48w_2s resnest14d resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18
    tiny_vit_5m_224 tresnet_m vgg11 ese_vovnet19b_slim_dw legacy_xception xception41
"""
_MAPS_224 = """
    efficientformerv2_s0 efficientvit_m0 gcvit_xxtiny levit_conv_128s nest_tiny sequencer2d_s swiftformer_xs
    swinv2_cr_tiny_224 visformer_tiny
"""

SLOW: list[Family] = [
    ("convnext_tiny.dinov3_lvd1689m", {}, 64, "cnn-norm"),
    ("convnext_tiny_hnf", {}, 64, "cnn"),
    ("efficientformer_l1", {}, 224, "vit"),
    ("twins_svt_small", {}, 64, "vit"),
    ("gemma4_vit_167m", {"depth": 1}, 48, "head"),
    ("qwen3_vit_88m_merge", {"depth": 1}, 64, "head"),
    ("deepseek_vit_412m", {"depth": 1}, 56, "cnn"),
    ("mvitv2_small_cls", {}, 64, "vit"),
    ("vitamin_small_224", {}, 64, "fc-norm"),
    ("gmixer_12_224", {}, 224, "vit"),
    ("gmlp_ti16_224", {}, 224, "vit"),
    ("resmlp_12_224", {}, 224, "vit"),
    *((name, {}, 64, "cnn") for name in _MAPS_64.split()),
    *((name, {}, 96, "cnn") for name in ("inception_resnet_v2", "inception_v3", "inception_v4")),
    ("hieradet_small", {"embed_dim": 24}, 64, "cnn"),
    *((name, {"embed_dim": 24}, 64, "cnn") for name in ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")),
    *((name, {}, 224, "cnn") for name in _MAPS_224.split()),
    ("mobilenetv5_300m", {"channel_multiplier": 0.1}, 64, "cnn"),
]
"""The smallest model of every other module of timm."""

DIFFER = {
    "vit_small_patch16_dinov3": "timm's head takes the mean of the patches, DINOv3's makers their class token",
    "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m": "as DINOv3, whose architecture EUPE has",
    "vit_pe_spatial_tiny_patch16_512": "a mean in timm; the makers pool nothing and have a class token",
    "vit_pe_lang_large_patch14_448": "a mean in timm; the makers pool nothing and have a class token",
    "deit_tiny_distilled_patch16_224": "timm's head takes the mean of class and distillation token",
    "vit_base_patch16_radio_v3": "three class tokens side by side; timm's head takes the first",
    "naflexvit_base_patch16_radio_v3": "three class tokens side by side; timm's head takes the first",
    "vit_so400m_patch16_radio_v4": "two class tokens side by side; timm's head takes the first",
}
"""Those whose cls is not what timm's own head pools, because their makers read something else. (dBOT's fine-tuned file,
`dbot-ft`, is a vision transformer with `global_pool: avg`: fc_norm of the mean patch, as its makers have it, agrees.)"""

REFUSED: list[Family] = [
    ("efficientvim_m1", {}, 64, "neither tokens nor a feature map"),
    ("coat_lite_tiny", {}, 64, "not a square grid"),
    ("pit_ti_224", {}, 64, "cannot be told from patch tokens"),
    ("qwen3_vit_88m_enc", TINY, 64, "no head that makes one vector"),
]
SLOW_REFUSED: list[Family] = [
    ("crossvit_tiny_240", {}, 240, "neither tokens nor a feature map"),
    ("coat_tiny", {}, 224, "neither tokens nor a feature map"),
    ("volo_d1_224", {}, 64, "cannot be told from patch tokens"),
    ("gemma4_vit_167m_enc", {"depth": 1}, 48, "no head that makes one vector"),
    ("deepseek_vit_412m_enc", {"depth": 1}, 56, "no head that makes one vector"),
    ("mobilenetv5_300m_enc", {"channel_multiplier": 0.1}, 64, "no head that makes one vector"),
]
"""Those that give no vector, no map, or tokens of which nobody says what they are; and the words for it."""


def random_encoder(folder: Path, name: str, model_args: dict[str, Any], size: int) -> Encoder:
    """A model of timm with random weights, as a teacher is resolved and loaded."""
    config = EncoderConfig(encoder=f"timm:{name}", weights="random:0", image_size=size, model_args=model_args)
    return load_encoder(resolve_encoder("any", config, folder, None))


def check_refused(folder: Path, family: Family) -> None:
    """Assert that a family is refused with its words before anything is extracted."""
    name, model_args, size, words = family
    with pytest.raises(UserError, match=words):
        random_encoder(folder, name, model_args, size)


def check_family(folder: Path, family: Family) -> None:
    """Assert that a family is read by its readout: cls as its own head or its makers do, and the patches where they are."""
    name, model_args, size, readout = family
    encoder = random_encoder(folder, name, model_args, size)
    model = encoder.model
    assert encoder.definition.readout == readout
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # A norm that is not yet trained changes little; where it stands would hardly be seen.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    x_B3HW = torch.randn(2, 3, size, size, generator=generator)
    with torch.inference_mode():
        cls_BD, patch_BPD = encoder(x_B3HW)
        features = model.forward_features(x_B3HW)
        own_BD = model.forward_head(features, pre_logits=True)
    if own_BD.ndim == 4:
        own_BD = own_BD.mean(dim=(2, 3))
    assert cls_BD.isfinite().all()
    same = cls_BD.shape == own_BD.shape and torch.allclose(cls_BD, own_BD, rtol=1e-3, atol=1e-4)
    assert same is (name not in DIFFER)
    assert patch_BPD.shape[1:] == encoder.definition.shape("patch")
    if features.ndim == 3:
        prefix = features.shape[1] - patch_BPD.shape[1]
        assert prefix == getattr(model, "num_prefix_tokens", 0)
        assert torch.equal(patch_BPD, features[:, prefix:])
    elif readout == "cnn":
        map_BDHW = features.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features
        assert torch.equal(patch_BPD, map_BDHW.flatten(2).transpose(1, 2))
    if name in DIFFER:
        tokens = cls_BD.shape[1] // own_BD.shape[1]
        assert torch.equal(cls_BD, features[:, :tokens].flatten(1))
