"""The later teachers of the registry: what timm says of them, and RADIO in its makers' own layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from families import TINY
from safetensors.torch import save_file

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.models import timm_card
from unic_pipe.pipeline.encoders.registry import REGISTRY
from unic_pipe.schemas.config import EncoderConfig

LATER = [
    "dinov3-b", "dinov3-l", "convnext-t-dinov3", "convnext-s-dinov3", "convnext-b-dinov3", "convnext-l-dinov3", "eupe-b",
    "siglip2-so400m", "pe-core-l", "radio-b", "radio-l",
]  # fmt: skip
READOUTS = {
    "dinov3-b": ("vit", 64, 48),
    "eupe-b": ("vit", 64, 48),
    "siglip2-so400m": ("head", 56, 48),
    "pe-core-l": ("head", 56, 48),
    "radio-b": ("class-tokens", 64, 144),
}


@pytest.mark.parametrize("name", LATER)
def test_the_registry_agrees_with_timm(name: str) -> None:
    card = REGISTRY[name]
    of_timm = timm_card(card.source.removeprefix("timm/"))
    agreeing = ("architecture", "image_size", "mean", "std", "readout", "hub_id", "model_args", "conversion")
    assert {f: getattr(card, f) for f in agreeing} == {f: getattr(of_timm, f) for f in agreeing}
    assert card.licence.partition(" ")[0].lower() in of_timm.licence
    assert set(card.files) <= set(of_timm.files)
    assert card.hub_files == of_timm.hub_files


@pytest.mark.parametrize("name", READOUTS)
def test_later_teachers_at_reduced_size(tmp_path: Path, name: str) -> None:
    readout, size, cls_dim = READOUTS[name]
    encoder = EncoderConfig(weights="random:0", image_size=size, model_args=TINY)
    definition = resolve_encoder(name, encoder, tmp_path, None).definition
    assert (definition.readout, definition.cls_dim, definition.shape("patch")) == (readout, cls_dim, (16, 48))


def test_radio_in_nvidias_layout_is_the_same_encoder(tmp_path: Path) -> None:
    """Of their file, timm takes the backbone; tokens of the summary are the first rows of `cls_token.token`."""
    torch.manual_seed(0)
    model = timm.create_model("naflexvit_base_patch16_radio_v3", **TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = model.state_dict()
    state["embeds.proj.bias"].zero_()
    official = {f"radio_model.model.{k}": v for k, v in state.items() if k.startswith("blocks.")}
    generator = "radio_model.model.patch_generator."
    tokens_TD = torch.cat([state["embeds.cls_token"][0], state["embeds.reg_token"][0]])
    official |= {
        f"{generator}cls_token.token": tokens_TD,
        f"{generator}pos_embed": state["embeds.pos_embed"].flatten(1, 2).clone(),
        # Theirs has channels before rows and columns.
        f"{generator}embedder.weight": state["embeds.proj.weight"].unflatten(1, (256, 3)).mT.flatten(1).contiguous(),
        "radio_model.summary_idxs": torch.arange(3),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
    }
    save_file(official, tmp_path / "nvidia.safetensors")
    config = EncoderConfig(weights="nvidia.safetensors", image_size=64, model_args=TINY)
    encoder = load_encoder(resolve_encoder("radio-b", config, tmp_path, None))
    x_B3HW = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens_BTD = model.forward_features(x_B3HW)
        cls_BD, patch_BPD = encoder(x_B3HW)
    torch.testing.assert_close(cls_BD, torch.cat([tokens_BTD[:, 0], tokens_BTD[:, 1], tokens_BTD[:, 2]], dim=1))
    torch.testing.assert_close(patch_BPD, tokens_BTD[:, 8:])
