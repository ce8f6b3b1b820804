"""Every family of timm's tokens and maps against its own head: which agree, and which differ by design."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import DIFFER, QUICK, REFUSED, TINY, Family, check_family, check_refused, random_encoder

from unic_pipe.pipeline.encoders import Encoder
from unic_pipe.pipeline.encoders.models import timm_card
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.schemas.base import digest_of


@pytest.mark.parametrize("family", QUICK, ids=[f"{name}-{readout}" for name, _, _, readout in QUICK])
def test_cls_is_what_the_models_own_head_pools(tmp_path: Path, family: Family) -> None:
    check_family(tmp_path, family)


@pytest.mark.parametrize("family", REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_gives_no_vector_or_no_map_is_refused(tmp_path: Path, family: Family) -> None:
    check_refused(tmp_path, family)


def test_the_list_of_those_that_differ_names_only_what_is_tried() -> None:
    assert DIFFER.keys() <= {name for name, *_ in QUICK}


def test_convnexts_of_dinov3_norm_their_map_as_its_mean(tmp_path: Path) -> None:
    """The reference is what their makers' code does: one norm over the mean and every place of the map."""
    assert timm_card("convnext_tiny.dinov3_lvd1689m").readout == timm_card("convnext_base.eupe_lvd1689m").readout
    assert timm_card("convnext_tiny.in12k").readout is None
    plain = random_encoder(tmp_path, "convnext_atto", {}, 64)
    encoder = Encoder(plain.model, plain.definition.model_copy(update={"readout": "cnn-norm"}))
    norm = torch.nn.LayerNorm(320, eps=encoder.model.head.norm.eps)
    for reference, own in zip(norm.parameters(), encoder.model.head.norm.parameters(), strict=True):
        torch.nn.init.normal_(own, 1.0, 0.2)
        reference.data = own.data
    x_B3HW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        map_BPD = encoder.model.forward_features(x_B3HW).flatten(2).transpose(1, 2)
        expected = norm(torch.cat([map_BPD.mean(dim=1, keepdim=True), map_BPD], dim=1))
        cls_BD, patch_BPD = encoder(x_B3HW)
    torch.testing.assert_close(cls_BD, expected[:, 0])
    torch.testing.assert_close(patch_BPD, expected[:, 1:])


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch16_radio_v3"])
def test_caches_that_were_read_wrongly_are_stale_with_that_reason(tmp_path: Path, name: str) -> None:
    now = random_encoder(tmp_path, name, TINY, 64).definition
    old = now.model_copy(update={"readout": "vit"})
    assert digest_of(now) != digest_of(old)
    assert describe(old, now) == f"readout: vit → {now.readout} (how cls and patch tokens are read)"
