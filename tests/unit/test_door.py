"""What comes from outside: arguments of models, names, and paths in documents."""

from __future__ import annotations

import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.models import build
from unic_pipe.pipeline.encoders.registry import parse_choice
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.pointers import point, pointed, resolve_pointer
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.arguments import ALLOWED, argument_problem
from unic_pipe.schemas.base import digest_of, require_name
from unic_pipe.schemas.config import EncoderConfig, StudentConfig
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import DamagedError, UserError
from unic_pipe.schemas.features import EncoderDefinition, FileEntry
from unic_pipe.schemas.students import CheckpointEntry
from unic_pipe.stages.distill.model.build import build_student

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
DECIDED = {
    "pretrained": True,
    "pretrained_cfg": "augreg_in21k",
    "pretrained_cfg_overlay": "x",
    "checkpoint_path": "weights.pth",
    "cache_dir": "cache",
    "features_only": True,
    "out_indices": 1,
    "scriptable": True,
    "num_classes": 3,
    "device": "meta",
    "dtype": "float16",
}
"""What timm's factory takes beside the arguments of a constructor."""


class Mine:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def folder_with(folder: Path, architecture: str = VIT, **arguments: object) -> Path:
    """An encoder's folder in timm's layout, as a stranger may hand it over."""
    folder.mkdir(exist_ok=True)
    save_file(timm.create_model(VIT, num_classes=0, img_size=32, **SMALL).state_dict(), folder / "model.safetensors")
    known = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    body = {"architecture": architecture, "model_args": {**SMALL, **arguments}, "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(body))
    return folder


def test_a_folder_without_surprises_loads_and_keeps_its_identity(tmp_path: Path) -> None:
    encoder = load_encoder(str(folder_with(tmp_path / "theirs", global_pool="token", qkv_bias=True, act_layer="gelu")))
    assert encoder.definition.model_args["embed_dim"] == 24
    fixed = encoder.definition.model_copy(update={"weights": "ab" * 32})
    assert digest_of(fixed) == "7680076113eefef4f5398683294d332216ba35c5832d00cb7a3c8194850aaa3d"


def test_a_folder_cannot_have_a_pickle_executed(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Mine(tmp_path / "executed")))
    folder = folder_with(tmp_path / "theirs", checkpoint_path=str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"config\.json: model_args\.checkpoint_path: unic-pipe decides this itself"):
        load_encoder(str(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", DECIDED)
def test_what_loads_or_fetches_is_refused_at_every_door(tmp_path: Path, name: str) -> None:
    """The folder of a stranger, a configured encoder, a definition that was read back, a student."""
    given = {**SMALL, name: DECIDED[name]}
    config = EncoderConfig(encoder=f"timm:{VIT}", weights="random:0", image_size=32, model_args=given)
    definition = EncoderDefinition(
        architecture=VIT, model_args=given, weights="random:0", readout="vit", image_size=32, mean=(0.5,) * 3,
        std=(0.5,) * 3, cls_dim=24, patch_dim=24, grid=(4, 4),
    )  # fmt: skip
    student = StudentConfig(architecture=VIT, image_size=32, model_args=given)
    for door in (
        lambda: load_encoder(str(folder_with(tmp_path / "theirs", **{name: DECIDED[name]}))),
        lambda: resolve_encoder("x", config, tmp_path, None),
        lambda: build(definition, None),
        lambda: build_student(student),
    ):
        with pytest.raises(UserError, match=f"model_args.{name}: unic-pipe decides this itself"):
            door()


def test_no_weights_come_in_beside_those_of_the_digest(tmp_path: Path) -> None:
    """Two processes that build one definition get the same weights, whatever lies in the files around them."""
    other = timm.create_model(VIT, num_classes=0, img_size=32, **SMALL)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    config = EncoderConfig(encoder=f"timm:{VIT}", weights="random:0", image_size=32, model_args=SMALL)
    honest = resolve_encoder("x", config, tmp_path, tmp_path)
    views = []
    for _ in range(2):
        views.append(load_encoder(honest).model.state_dict()["norm.bias"])
        torch.save({key: value + 1 for key, value in other.state_dict().items()}, tmp_path / "other.pth")
    assert torch.equal(*views)
    forged = honest.definition.model_copy(
        update={"model_args": {**SMALL, "checkpoint_path": str(tmp_path / "other.pth")}}
    )
    with pytest.raises(UserError, match="checkpoint_path"):
        build(forged, None)


@pytest.mark.parametrize("family", [VisionTransformer, EfficientNet, ConvNeXt, ResNet, Eva, SwinTransformer])
def test_numbers_and_flags_of_constructors_can_be_given(family: type) -> None:
    """Of timm's own classes: whatever is a number, a text or a flag by default, but for what we decide."""
    defaults = {name: p.default for name, p in inspect.signature(family).parameters.items()}
    plain = {name: value for name, value in defaults.items() if type(value) in (int, float, bool, str)}
    refused = {name for name, value in plain.items() if argument_problem(name, value)}
    assert refused <= {"num_classes"}
    assert len(plain) > 8


def test_nothing_that_timms_factory_takes_is_on_the_list() -> None:
    factories = (timm.create_model, timm.models.build_model_with_cfg)
    assert not ALLOWED & {name for f in factories for name in inspect.signature(f).parameters}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("dept", 1, "did you mean depth"),
        ("depth", [1], "expected a number"),
        ("depth", None, "expected a number"),
        ("depth", 10**12, "at most 65,536"),
        ("mlp_ratio", float("nan"), "at most 65,536"),
        ("act_layer", "x" * 101, "at most 100 characters"),
        ("act_layer", "a\x1b[2J", "printable"),
    ],
)
def test_arguments_are_plain_and_bounded(name: str, value: object, why: str) -> None:
    assert why in (argument_problem(name, value) or "")


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/vit_tiny_patch16_224.x", f"local-dir:/{VIT}", f"/x/{VIT}", "", "no_such_model"]
)
def test_an_architecture_is_a_name_that_timm_knows(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"not the name of a timm architecture|has no model"):
        load_encoder(str(folder_with(tmp_path / "theirs", architecture=name)))
    with pytest.raises(UserError, match=r"not the name of a timm architecture|timm has no such model"):
        build_student(StudentConfig(architecture=name))


def test_the_configuration_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "unic-pipe.yaml").write_text(
        "samples: {datasets: {train: {source: data}}}\n"
        "teachers:\n"
        "  dino:\n"
        "    model_args: {pretrained: true}\n"
        "students: {s: {model_args: {dept: 2}}}\n"
        "evaluate: {encoders: {e: {encoder: dino, model_args: {cache_dir: x}}}}\n"
    )
    with pytest.raises(UserError) as caught:
        load_workspace(tmp_path)
    lines = caught.value.message.splitlines()
    assert lines[0].endswith("has 3 problems:")
    assert "line 4: teachers.dino.model_args.pretrained: unic-pipe decides this itself" in lines[1]
    assert "line 5: students.s.model_args.dept: not an argument that shapes an architecture" in lines[2]
    assert lines[2].endswith("; did you mean depth?")
    assert "line 6: evaluate.encoders.e.model_args.cache_dir: unic-pipe decides this itself" in lines[3]


@pytest.mark.parametrize("name", ["", ".", "..", "-rf", ".hidden", "../x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 101])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="is not a usable name"):
        require_name(name, "Student")
    if name:
        with pytest.raises(UserError, match="is not a usable name"):
            parse_choice(f"student:{name}")


@pytest.mark.parametrize("name", ["a", "0", "unic-b", "A.b_c+d-", "x" * 100])
def test_what_is_a_name(name: str) -> None:
    assert require_name(name, "Student") == name


@pytest.mark.parametrize("path", ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a\0b"])
def test_paths_in_documents_stay_in_their_folder(path: str) -> None:
    for build_entry in (
        lambda: FileEntry(path=path, size=1, xxh3="ab" * 16),
        lambda: CheckpointEntry(file=path, step=1, size=1, digest="ab" * 32, student="ab" * 32),
    ):
        with pytest.raises(ValueError, match="leads out of its folder"):
            build_entry()
    assert FileEntry(path="view-000/patch/c/0/0", size=1, xxh3="ab" * 16).path


@pytest.mark.parametrize("found", [{"files": ("../../x.pth",)}, {"hub_files": ("/x",)}, {"package": "os.path"}])
def test_cards_that_were_read_back_name_files_and_packages_only(found: dict[str, Any]) -> None:
    """`runs/encoders.json` is a document like others: a download goes where its card says."""
    card = {"name": "x", "architecture": VIT, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "source": "x"}
    assert EncoderCard(**card).files == ()
    with pytest.raises(ValueError, match=r"leads out of its folder|pattern"):
        EncoderCard(**card, **found)


def test_pointers_lead_to_folders_beside_them_only(tmp_path: Path) -> None:
    here, outside = tmp_path / "students", tmp_path / "outside"
    (here / "main-0123abcd").mkdir(parents=True)
    outside.mkdir()
    point(here, "main", "main-0123abcd")
    assert resolve_pointer(here, "main") == here / "main-0123abcd"
    for number, target in enumerate((str(outside), "../outside", "..", ".", "main-0123abcd/..")):
        os.symlink(target, here / f"away{number}")
        with pytest.raises(DamagedError, match="points to"):
            resolve_pointer(here, f"away{number}")
        with pytest.raises(DamagedError, match="points to"):
            pointed(LocalStore(here), f"away{number}")
        with pytest.raises(UserError, match="in the way"):
            point(here, f"away{number}", "main-0123abcd")
        assert os.readlink(here / f"away{number}") == target
