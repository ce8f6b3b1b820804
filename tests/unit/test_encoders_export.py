"""Exported students: loadable by timm and by ourselves, with the same tokens and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from unic_pipe.pipeline.encoders import export_student, load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.typed import typed_choice
from unic_pipe.pipeline.storage import LocalStore, sha256_of_file
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.recipes import CENTER

ARCHITECTURE = "vit_tiny_patch16_224"
ARGS = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 2}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def student() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, img_size=32, num_classes=0, drop_path_rate=0.1, **ARGS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def export(folder: Path, model: torch.nn.Module) -> tuple[str, str]:
    return export_student(
        LocalStore(folder), model, architecture=ARCHITECTURE, model_args={**ARGS, "img_size": 32}, image_size=32, mean=MEAN,
        std=STD, prefix="export/",
    )  # fmt: skip


def test_timm_and_load_encoder_give_the_students_tokens(tmp_path: Path, student: torch.nn.Module) -> None:
    weights, config = export(tmp_path, student)
    folder = tmp_path / "export"
    assert sha256_of_file(folder / "model.safetensors") == weights
    assert sha256_of_file(folder / "config.json") == config
    x_B3HW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = student.forward_features(x_B3HW)
        through_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(through_timm.forward_features(x_B3HW), expected)
    assert (through_timm.pretrained_cfg["mean"], through_timm.pretrained_cfg["std"]) == (list(MEAN), list(STD))
    data = timm.data.resolve_model_data_config(through_timm)
    assert (data["input_size"], tuple(data["mean"]), tuple(data["std"])) == ((3, 32, 32), MEAN, STD)
    for spec in (str(folder), f"checkpoint:{folder}"):
        encoder = load_encoder(spec)
        cls_BD, patch_BPD = encoder(x_B3HW)
        assert torch.equal(cls_BD, expected[:, 0])
        assert torch.equal(patch_BPD, expected[:, 3:])
        definition = encoder.definition
        assert (definition.weights, definition.image_size, definition.grid) == (weights, 32, (4, 4))
        assert (definition.mean, definition.std) == (MEAN, STD)


def test_equal_students_export_equal_bytes(tmp_path: Path, student: torch.nn.Module) -> None:
    assert export(tmp_path / "a", student) == export(tmp_path / "b", student)
    first, second = (sorted(p for p in (tmp_path / n / "export").iterdir()) for n in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_identity_does_not_depend_on_the_folder(tmp_path: Path, student: torch.nn.Module) -> None:
    export(tmp_path / "a", student)
    before = resolve_encoder("s", EncoderConfig(encoder=f"checkpoint:{tmp_path}/a/export"), tmp_path, tmp_path)
    (tmp_path / "a").rename(tmp_path / "moved")
    after = resolve_encoder("s", EncoderConfig(encoder="checkpoint:moved/export"), tmp_path / "weights", tmp_path)
    assert after.digest == before.digest


def test_an_export_at_another_size_is_another_encoder(tmp_path: Path, student: torch.nn.Module) -> None:
    export(tmp_path, student)
    config = EncoderConfig(encoder=f"checkpoint:{tmp_path}/export", image_size=64)
    assert load_encoder(resolve_encoder("s", config, tmp_path, None)).definition.grid == (8, 8)


def test_timms_transform_crops_what_probes_read(tmp_path: Path, student: torch.nn.Module) -> None:
    export(tmp_path, student)
    model = timm.create_model(f"local-dir:{tmp_path}/export", pretrained=True, num_classes=0)
    assert timm.data.resolve_model_data_config(model)["crop_pct"] == CENTER.center_fraction < 1


def test_random_baseline_of_an_export_has_its_architecture(tmp_path: Path, student: torch.nn.Module) -> None:
    export(tmp_path, student)
    config = EncoderConfig(encoder=f"checkpoint:{tmp_path}/export", weights="random:0")
    baseline = resolve_encoder("s", config, tmp_path, None)
    assert baseline.definition.weights == "random:0"
    assert baseline.weights_path is None
    assert baseline.definition.grid == (4, 4)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_an_export_is_refused(tmp_path: Path, student: torch.nn.Module, missing: str) -> None:
    export(tmp_path, student)
    (tmp_path / "export" / missing).unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_encoder(str(tmp_path / "export"))


def test_a_config_that_is_not_timms_is_refused(tmp_path: Path, student: torch.nn.Module) -> None:
    export(tmp_path, student)
    (tmp_path / "export" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="names no architecture of timm"):
        load_encoder(str(tmp_path / "export"))


def test_a_students_bare_name_says_how_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "students/main").mkdir(parents=True)
    with pytest.raises(UserError, match="No encoder is named 'main', but a student is") as error:
        typed_choice("main", tmp_path)
    assert error.value.hint == "Type student:main"
