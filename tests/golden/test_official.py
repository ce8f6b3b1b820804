"""Official UNIC checkpoints: in with the official outputs, and out again tensor by tensor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.convert import export_imported, import_encoder

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HEADS = {"num_heads": 2}
TINY = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
TEACHERS = [("dino", "dino"), ("ibot", "ibot"), ("deit3", "deit3"), ("dbot-ft", "dbotft")]


def official(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_student_tokens(golden: Path, encoder: Any) -> None:
    with np.load(golden / "unic.npz") as numbers, torch.no_grad():
        cls_BD, patch_BPD = encoder(torch.from_numpy(numbers["student/image"]))
        np.testing.assert_allclose(cls_BD.numpy(), numbers["student/x_norm_clstoken"], **CLOSE)
        np.testing.assert_allclose(patch_BPD.numpy(), numbers["student/x_norm_patchtokens"], **CLOSE)


def test_a_file_is_an_encoder_whose_architecture_is_read_off_its_tensors(golden: Path, tmp_path: Path) -> None:
    config = EncoderConfig(encoder=f"checkpoint:{golden / 'unic_tiny.pth'}", model_args=HEADS)
    resolved = resolve_encoder("unic", config, tmp_path, tmp_path)
    assert resolved.definition.model_args == TINY
    assert resolved.definition.image_size == 32
    assert resolved.definition.mean == (0.485, 0.456, 0.406)
    assert resolve_encoder("unic", config, tmp_path, tmp_path).digest == resolved.digest
    assert_student_tokens(golden, load_encoder(resolved))


def test_architecture_and_arguments_may_be_given(golden: Path, tmp_path: Path) -> None:
    config = EncoderConfig(
        encoder=f"checkpoint:{golden / 'unic_tiny.pth'}", architecture="vit_small_patch16_224", model_args=TINY
    )
    assert_student_tokens(golden, load_encoder(resolve_encoder("unic", config, tmp_path, None)))


def test_in_and_out_again_is_equal_tensor_by_tensor(golden: Path, tmp_path: Path) -> None:
    folder = import_encoder(tmp_path, tmp_path, golden / "unic_tiny.pth", "tiny", model_args=HEADS)
    assert folder == tmp_path / "encoders" / "tiny"
    assert_student_tokens(golden, load_encoder(str(folder)))
    written = export_imported(folder, tmp_path / "again.pth").path
    before, after = official(golden / "unic_tiny.pth"), official(written)
    assert list(after) == list(before)
    assert (after["epoch"], after["args"]) == (before["epoch"], before["args"])
    assert list(after["model"]) == list(before["model"])
    for key, tensor in before["model"].items():
        assert torch.equal(after["model"][key], tensor), key
        assert after["model"][key].dtype == tensor.dtype
    for teacher, by_token in before["teacher_ft_stats"].items():
        for token, both in by_token.items():
            for name, tensor in both.items():
                assert torch.equal(after["teacher_ft_stats"][teacher][token][name], tensor)
    assert not (tmp_path / ".tmp").exists()


def test_ladder_of_the_file_gives_the_official_outputs_after_a_round_trip(golden: Path, tmp_path: Path) -> None:
    folder = import_encoder(tmp_path, tmp_path, golden / "unic_tiny.pth", "tiny", model_args=HEADS)
    model = official(export_imported(folder, tmp_path / "again.pth").path)["model"]
    with np.load(golden / "unic.npz") as numbers:
        outputs = [key.split("/")[2:] for key in numbers.files if key.startswith("ladder/out/")]
        assert len(outputs) >= 2
        for teacher, token in outputs:
            if token in ("cls", "patch"):
                total: Any = 0
                for block in range(3):
                    rung = {k: model[f"module.lp.heads.{teacher}.{token}.{block}.layers.{k}"] for k in (
                        "0.weight", "0.bias", "2.weight", "2.bias")}  # fmt: skip
                    x = torch.from_numpy(numbers[f"ladder/in_{token}/{block + 1}"])
                    hidden = torch.nn.functional.gelu(x @ rung["0.weight"].T + rung["0.bias"])
                    total = total + hidden @ rung["2.weight"].T + rung["2.bias"]
                np.testing.assert_allclose(total.numpy(), numbers[f"ladder/out/{teacher}/{token}"], **CLOSE)


@pytest.mark.parametrize(("layout", "key"), TEACHERS)
def test_teachers_files_are_imported_with_their_tokens(golden: Path, tmp_path: Path, layout: str, key: str) -> None:
    """They are import-only: nothing writes a teacher's official layout."""
    file = golden / f"teacher_{key}_tiny.pth"
    folder = import_encoder(tmp_path, tmp_path, file, "mine", layout, TINY, image_size=32)
    encoder = load_encoder(str(folder))
    with np.load(golden / "teachers.npz") as expected:
        cls_BD, patch_BPD = encoder(torch.from_numpy(expected["teacher/image"]))
        np.testing.assert_allclose(cls_BD.numpy(), expected[f"teacher/{key}/cls"], **CLOSE)
        np.testing.assert_allclose(patch_BPD.numpy(), expected[f"teacher/{key}/patch"], **CLOSE)
    with pytest.raises(UserError, match=r"no ladder\.safetensors"):
        export_imported(folder, tmp_path / "again.pth")
