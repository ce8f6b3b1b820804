"""The official UNIC layout: registers, layer scale, sizes, what cannot be expressed; wrong files of every layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.official import OfficialCheckpoint, described, image_size, read_official
from unic_pipe.pipeline.encoders.official_export import architecture_name, encoder_to_official, official_names
from unic_pipe.pipeline.encoders.registry import REGISTRY
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
ARCHITECTURE = "vit_tiny_patch16_224"


def vit(architecture: str = ARCHITECTURE, size: int = 32, **more: Any) -> nn.Module:
    model: nn.Module = timm.create_model(architecture, img_size=size, num_classes=0, **{**SMALL, **more}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def written(model: nn.Module, path: Path, **args: Any) -> Path:
    checkpoint = OfficialCheckpoint(encoder_to_official(model), {}, {}, 1, args)
    path.write_bytes(checkpoint.to_bytes())
    return path


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        (ARCHITECTURE, {}),
        (ARCHITECTURE, {"reg_tokens": 4}),
        (ARCHITECTURE, {"init_values": 0.1, "mlp_ratio": 2.0, "patch_size": 16}),
        ("vit_small_patch14_reg4_dinov2", {}),
    ],
    ids=["plain", "registers", "layer-scale", "dinov2-registers"],
)
def test_out_and_in_again_gives_the_same_tokens(tmp_path: Path, architecture: str, more: dict[str, Any]) -> None:
    model = vit(architecture, **more)
    file = written(model, tmp_path / "x.pth", num_heads=2)
    encoder = load_encoder(str(file))
    x_B3HW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens_BTD = model.forward_features(x_B3HW)
    cls_BD, patch_BPD = encoder(x_B3HW)
    torch.testing.assert_close(cls_BD, tokens_BTD[:, 0])
    torch.testing.assert_close(patch_BPD, tokens_BTD[:, model.num_prefix_tokens :])
    again = encoder_to_official(encoder.model)
    assert all(torch.equal(again[key], value) for key, value in read_official(file).encoder.items())


@pytest.mark.parametrize(("size", "patch"), [("tiny", 16), ("small", 16), ("base", 16), ("large", 14)])
def test_the_official_sizes_are_recognised_without_arguments(size: str, patch: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch16_224", num_classes=0, patch_size=patch)
    assert architecture_name(model) == f"vit_{size}"
    checkpoint = OfficialCheckpoint(dict(model.state_dict()), {}, {}, 1, {})
    found = described(checkpoint, {}, Path("x"))
    assert found == (f"vit_{size}_patch16_224", {} if patch == 16 else {"patch_size": patch})
    assert image_size(checkpoint.encoder, Path("x")) == 224


def test_position_embeddings_follow_the_image_size(tmp_path: Path) -> None:
    model = vit(reg_tokens=2)
    file = written(model, tmp_path / "x.pth", num_heads=2)
    config = EncoderConfig(encoder=f"checkpoint:{file}", image_size=48)
    encoder = load_encoder(resolve_encoder("x", config, tmp_path, None))
    assert encoder.definition.grid == (6, 6)
    torch.testing.assert_close(encoder.model.pos_embed[:, :1], model.pos_embed[:, :1])
    assert not encoder.model.pos_embed[:, 1:3].any(), "registers have no position"


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    file = written(vit(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="width 24 is not a multiple of 64") as caught:
        load_encoder(str(file))
    assert "num_heads: N" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("architecture", "part"),
    [
        ("vit_base_patch16_siglip_224", "attn_pool"),
        ("vit_base_patch16_clip_quickgelu_224", r"norm_pre\.weight"),
        ("vit_giant_patch14_reg4_dinov2", "activation SwiGLU|activation SiLU"),
        ("deit_tiny_distilled_patch16_224", "dist_token"),
    ],
)
def test_encoders_that_the_official_one_cannot_express(architecture: str, part: str) -> None:
    with pytest.raises(UserError, match=f"cannot express this one; it differs in: .*({part})"):
        encoder_to_official(vit(architecture))


def test_names_of_teachers_that_the_official_code_knows() -> None:
    assert official_names(["dino", "my.own"]) == {"dino": "dino_vitbase_16", "my.own": "my_own"}
    with pytest.raises(UserError, match="equal names"):
        official_names(["a.b", "a_b"])


def test_only_the_namespace_may_be_in_a_file(tmp_path: Path) -> None:
    model = {f"module.encoder.{key}": value for key, value in encoder_to_official(vit()).items()}
    content = {"model": model, "args": argparse.Namespace(num_heads=2)}
    torch.save(content, tmp_path / "good.pth")
    assert read_official(tmp_path / "good.pth").args == {"num_heads": 2}
    torch.save({**content, "teacher_ft_stats": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"refused: contains pathlib\.\w+"):
        read_official(tmp_path / "evil.pth")


def test_a_ladder_with_norms_is_refused_by_key_but_its_encoder_is_not(tmp_path: Path) -> None:
    checkpoint = OfficialCheckpoint(encoder_to_official(vit()), {}, {}, 1, {"num_heads": 2})
    checkpoint.ladder["alpha.cls.0.layers.1.weight"] = torch.zeros(3)
    (tmp_path / "x.pth").write_bytes(checkpoint.to_bytes())
    with pytest.raises(UserError, match=r"unexpected: alpha\.cls\.0\.layers\.1\.weight"):
        read_official(tmp_path / "x.pth")
    assert load_encoder(str(tmp_path / "x.pth")).definition.cls_dim == 24


@pytest.mark.parametrize("name", ["dino", "ibot", "deit3", "dbot-ft", "dinov2-g", "metaclip-h"])
def test_a_wrong_file_is_refused_with_missing_and_unexpected_keys(tmp_path: Path, name: str) -> None:
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    if name == "dbot-ft":
        state["fc_norm.weight"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "wrong.pth")
    config = EncoderConfig(encoder=name, weights="wrong.pth", image_size=28 if "14" in REGISTRY[name].architecture else 32,
                           model_args={"embed_dim": 24, "depth": 1, "num_heads": 2})  # fmt: skip
    with pytest.raises(UserError, match=r"wrong\.pth does not fit .*missing: \w.*unexpected: conv1\.weight") as caught:
        resolve_encoder("teacher", config, tmp_path, None)
    assert "belong together" in (caught.value.hint or "")


def test_a_wrong_unic_file_is_refused_with_missing_and_unexpected_keys(tmp_path: Path) -> None:
    other = {f"module.encoder.{key}": value for key, value in timm.create_model("resnet18").state_dict().items()}
    torch.save({"model": other}, tmp_path / "wrong.pth")
    with pytest.raises(
        UserError, match=r"wrong\.pth does not fit unic: missing: pos_embed, .*unexpected: conv1\.weight"
    ):
        load_encoder(str(tmp_path / "wrong.pth"))
    encoder = encoder_to_official(vit())
    encoder["blocks.0.0.extra"] = encoder.pop("blocks.0.0.norm2.bias")
    (tmp_path / "odd.pth").write_bytes(OfficialCheckpoint(encoder, {}, {}, 1, {"num_heads": 2}).to_bytes())
    with pytest.raises(UserError, match=r"missing: blocks\.0\.norm2\.bias; unexpected: blocks\.0\.extra"):
        load_encoder(str(tmp_path / "odd.pth"))
