"""The ladder of any kind of student, exported and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unic_pipe import load_student
from unic_pipe.pipeline.encoders.export import export_student
from unic_pipe.pipeline.encoders.official import Statistics
from unic_pipe.pipeline.encoders.official_export import named_ladder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.students.adaptors import FILE, Adaptors
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.schemas.config import LadderConfig, StudentConfig
from unic_pipe.stages.distill.model.distiller import build_ladder


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit4", "test_efficientnet", "test_convnext"])
def test_adaptors_of_an_export_are_the_ladder(architecture: str, tmp_path: Path) -> None:
    config = StudentConfig(
        architecture=architecture, image_size=64, ladder=LadderConfig(blocks=(1, 3), hidden=8, last_hidden=6)
    )
    student = build_student(config).eval()
    ladder = build_ladder(config, {"cls": {"a.b": 5, "b": 4}, "patch": {"a.b": 7, "b": 3}}, student)
    statistics: Statistics = {
        name: {
            "cls": {"mean": torch.arange(1.0, cls + 1), "std": torch.full((cls,), 2.0)},
            "patch": {"mean": torch.zeros(patch), "std": torch.arange(1.0, patch + 1)},
        }
        for name, cls, patch in (("a.b", 5, 7), ("b", 4, 3))
    }
    projectors = named_ladder(ladder.state_dict(), {"a.b": "a.b", "b": "b"}, ladder.rungs.blocks)
    (tmp_path / FILE).write_bytes(Adaptors(projectors, statistics).to_bytes())
    export_student(
        LocalStore(tmp_path), student.encoder, architecture=architecture, model_args={}, image_size=64,
        mean=config.mean, std=config.std, readout=student.readout,
    )  # fmt: skip

    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    loaded = load_student(tmp_path)
    found = loaded.adapt("a.b")(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert not loaded.model.training
    with torch.no_grad():
        raw = ladder(*student(x, ladder.rungs.blocks))
    torch.testing.assert_close(found.cls, raw["cls"]["a.b"] * 2 + torch.arange(1.0, 6), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patch, raw["patch"]["a.b"] * torch.arange(1.0, 8), rtol=1e-4, atol=1e-5)
    assert loaded.adapt("b", ("patch",))(x).cls.shape == (2, 0)
