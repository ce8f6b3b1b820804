"""Students of every kind of network: what is distilled is what is exported and read; and what cannot be a student."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from architectures import BLOCKS, FAMILIES, Family, shake
from distill_world import World, assert_same_student, student_folder
from torch import nn
from torch.nn import functional as F

from unic_pipe.pipeline.encoders import export_student, load_encoder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.staged import MapResampler
from unic_pipe.pipeline.students.student import GivenDropPath, RungOutputs, Student
from unic_pipe.pipeline.students.vits import ViTStudent
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.distill.blueprint import build

LATE = [
    Family("cait_xxs24_224", BLOCKS, 32, 2, "vit"),
    Family("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, 32, 2, "vit"),
    Family("xcit_nano_12_p16_224", {"depth": 1}, 32, 1, "vit"),
]
"""Their class token is not in every block."""


def exported(folder: Path, family: Family, student: Student) -> Path:
    config = family.config
    export_student(
        LocalStore(folder), student.encoder, architecture=family.architecture, model_args=student.model_args,
        image_size=family.image_size, mean=config.mean, std=config.std, readout=student.readout, prefix="export/",
    )  # fmt: skip
    return folder / "export"


def weighted(outputs: RungOutputs) -> torch.Tensor:
    """A scalar that depends on every number, each in its own way."""
    return torch.stack([(x * torch.randn_like(x)).sum() for x in (*outputs.cls_LBD, *outputs.patch_LBPD)]).sum()


@pytest.mark.parametrize("family", [*FAMILIES, *LATE], ids=lambda family: family.architecture)
def test_what_is_distilled_is_exported_and_read(family: Family, tmp_path: Path) -> None:
    student = build_student(family.config)
    assert (student.depth, student.readout) == (family.rungs, family.readout)
    shake(student.encoder)
    every = tuple(range(student.depth))
    x_B3SS = torch.randn(2, 3, family.image_size, family.image_size)
    outputs = student(x_B3SS, every, torch.ones(2, len(student.drop_paths)))
    tokens = student.grid[0] * student.grid[1]
    for rung in every:
        assert outputs.cls_LBD[rung].shape == (2, student.widths["cls"][rung])
        assert outputs.patch_LBPD[rung].shape == (2, tokens, student.widths["patch"][rung])
    weighted(outputs).backward()
    named = dict(student.encoder.named_parameters())
    assert {name for name, p in named.items() if p.grad is None or not p.grad.any()} == set(family.untrained)

    shared = {id(p) for part in student.parts for p in part.parameters()}
    assert all(id(p) in shared for name, p in named.items() if name.count(".") > 2), "parts hold what is deep inside"
    student.eval()
    folder = exported(tmp_path, family, student)
    encoder = load_encoder(str(folder))
    assert (encoder.definition.readout, encoder.definition.grid) == (student.readout, student.grid)
    with torch.inference_mode():
        last = student(x_B3SS, every[-1:])
        cls_BD, patch_BPD = last.cls_LBD[0], last.patch_LBPD[0]
        if isinstance(student, ViTStudent):
            normed = student.encoder.norm(torch.cat([cls_BD[:, None], patch_BPD], dim=1))
            cls_BD, patch_BPD = normed[:, 0], normed[:, 1:]
        read = encoder(x_B3SS)
        torch.testing.assert_close(read.cls, cls_BD)
        torch.testing.assert_close(read.patch, patch_BPD)
        through_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        own = encoder.model.forward_features(x_B3SS)  # type: ignore[operator]
        assert torch.equal(through_timm.forward_features(x_B3SS), own)


@pytest.mark.parametrize("name", ["test_mambaout", "swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_patch_tokens_lie_as_the_image_does(name: str) -> None:
    """Channels last, windows, tokens in mask units: what changes in a corner of the image changes that corner's tokens."""
    family = next(f for f in FAMILIES if f.architecture == name)
    student = build_student(family.config).eval()
    size, (rows, columns) = family.image_size, student.grid
    x_13SS = torch.zeros(1, 3, size, size)
    every = tuple(range(student.depth))
    with torch.inference_mode():
        before = student(x_13SS, every).patch_LBPD
        x_13SS[:, :, : size // rows, -size // columns :] = 3.0
        after = student(x_13SS, every).patch_LBPD
    for old, new in zip(before, after, strict=True):
        assert int((new - old).norm(dim=2).argmax()) == columns - 1


def test_maps_are_averaged_where_they_shrink_and_interpolated_where_they_grow() -> None:
    x_BDHW = torch.randn(2, 3, 8, 3)
    for grid in ((4, 3), (3, 2), (1, 1)):
        expected = F.adaptive_avg_pool2d(x_BDHW, grid).flatten(2).transpose(1, 2)
        torch.testing.assert_close(MapResampler((8, 3), grid)(x_BDHW), expected)
    grown = F.interpolate(x_BDHW, size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(MapResampler((8, 3), (8, 6))(x_BDHW), grown.flatten(2).transpose(1, 2))


def test_parts_of_an_image_that_are_rows_of_their_own_share_its_draw() -> None:
    drop = GivenDropPath(0.5)
    drop.draw(torch.tensor([0.2, 0.9]))
    assert drop(torch.ones(6, 1, 1)).flatten().tolist() == [0, 0, 0, 2, 2, 2]
    tnt = {"architecture": "tnt_s_legacy_patch16_224", "model_args": {"depth": 2}, "image_size": 224}
    assert len(build(StudentConfig(**tnt)).drop_paths) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "test_efficientnet"])
def test_stopped_and_resumed_to_the_same_bits(world: World, name: str, tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.architecture == name)
    shape = {"architecture": name, "model_args": family.model_args, "image_size": 32}
    config = world.definition().config.model_copy(update=shape)
    once = World(shutil.copytree(world.folder, tmp_path / "once", symlinks=True))
    assert once.distill(config)
    assert not world.distill(config, stop_after=5)
    assert world.distill(config)
    assert_same_student(world, once)
    assert load_encoder(str(student_folder(world) / "export")).definition.readout == family.readout


def test_an_export_of_before_is_read_by_its_class_token(world: World, tmp_path: Path) -> None:
    """Students learned with class tokens when exports did not record how they are read; others' folders say nothing."""
    import json

    beit = {"architecture": "beit_base_patch16_224", "model_args": FAMILIES[2].model_args, "image_size": 32}
    assert world.distill(world.definition().config.model_copy(update=beit))
    folder = student_folder(world) / "export"
    body: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    assert body.pop("readout") == "vit"
    (folder / "config.json").write_text(json.dumps(body))
    assert load_encoder(str(folder)).definition.readout == "vit"
    (folder / "manifest.json").unlink()
    assert load_encoder(str(folder)).definition.readout == "fc-norm"
    (folder / "config.json").write_text(json.dumps({**body, "readout": "cnn"}))
    with pytest.raises(UserError, match="readout cnn"):
        load_encoder(str(folder))


def test_an_export_of_any_image_size_is_built_at_its_own(tmp_path: Path) -> None:
    """timm's default size would resample its position embedding, and back again."""
    family = Family("vit_tiny_patch16_224", {**FAMILIES[0].model_args, "dynamic_img_size": True}, 48, 2, "vit")
    student = build_student(family.config)
    shake(student.encoder)
    encoder = load_encoder(str(exported(tmp_path, family, student)))
    assert torch.equal(encoder.model.pos_embed, student.encoder.pos_embed)  # type: ignore[arg-type]


class OwnDropPath(nn.Module):
    """A network whose drop path is no layer of timm's."""

    def __init__(self, drop_path_rate: float = 0.0, num_classes: int = 0, **_: Any) -> None:
        super().__init__()
        self.rate, self.stem = drop_path_rate, nn.Conv2d(3, 8, 16, 16)
        self.num_features = 8

    def forward_features(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        x_BDHW = self.stem(x_B3SS)
        return timm.layers.drop_path(x_BDHW, self.rate, self.training)

    def forward_head(self, x_BDHW: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x_BDHW.mean(dim=(2, 3))


@timm.models.register_model
def own_drop_path(pretrained: bool = False, **arguments: Any) -> OwnDropPath:
    (
        arguments.pop("pretrained_cfg", None),
        arguments.pop("pretrained_cfg_overlay", None),
        arguments.pop("cache_dir", None),
    )
    if "img_size" in arguments:
        raise TypeError("__init__() got an unexpected keyword argument 'img_size'")
    return OwnDropPath(**arguments)


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        (
            {"architecture": "crossvit_tiny_240", "image_size": 240},
            "neither tokens nor a feature map",
            "Choose another",
        ),
        ({"architecture": "maxvit_rmlp_pico_rw_256", "image_size": 64}, r"has dropout \(stages\.0", "Choose another"),
        ({"architecture": "own_drop_path"}, "its drop path is its own", "Set students.NAME.drop_path: 0."),
        ({"architecture": "ghostnet_050"}, "it has dropout", "Set students.NAME.model_args.drop_rate: 0."),
        ({"architecture": "test_vit"}, "of 36 pixels", "Set students.NAME.image_size to 32 or 48."),
        ({"architecture": "hiera_tiny_224"}, "cannot be built", "Set students.NAME.image_size to 32 or 64."),
        (
            {"architecture": "test_vit", "model_args": {"embed_dim": 0}},
            "cannot be built",
            "Check students.NAME.architecture",
        ),
    ],
)
def test_refused_by_what_it_does(changes: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        build(StudentConfig(**{"image_size": 36, **changes}))
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(hint)


def test_without_stages_there_is_one_rung() -> None:
    student = build(StudentConfig(architecture="own_drop_path", image_size=32, drop_path=0.0))
    assert (student.depth, student.grid, student.readout) == (1, (2, 2), "cnn")
