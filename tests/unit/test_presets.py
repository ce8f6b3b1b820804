"""The paper's settings by name: what they say, that they say it aloud, and that students can be built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from unic_pipe.pipeline.workspace.configuration import load_workspace, to_yaml
from unic_pipe.schemas.config import (
    BenchmarkConfig,
    Config,
    DatasetConfig,
    DistillConfig,
    EvaluateConfig,
    SamplesConfig,
)
from unic_pipe.stages.init.presets import COMMENTS, PRESETS, preset_config

PAPER = {
    "dataset": "train",
    "drop_path": 0.1,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "ladder.blocks": "all",
    "ladder.hidden": 768,
    "ladder.last_hidden": 3072,
    "loss.cosine": 0.5,
    "loss.smooth_l1": 0.5,
    "loss.tokens": "both",
    "loss.standardize": "exact",
    "optimizer.batch": 512,
    "optimizer.min_lr": 1e-6,
    "optimizer.weight_decay": 0.03,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.99,
    "optimizer.clip_norm": None,
    "dtype": "bfloat16",
}
FIRST = {"image_size": 224, "optimizer.epochs": 200, "optimizer.warmup_epochs": 10, "optimizer.lr": 3e-4}
STUDENTS: dict[tuple[str, str], dict[str, Any]] = {
    ("unic-b", "unic-b"): {
        "architecture": "vit_base_patch16_224",
        "teachers": ("dino", "ibot", "deit3", "dbot-ft"),
        "loss.drop_probability": 0.5,
        **FIRST,
    },
    ("unic-l", "unic-l"): {
        "architecture": "vit_large_patch14_224",
        "teachers": ("dinov2-g", "metaclip-h"),
        "loss.drop_probability": 0.25,
        **FIRST,
    },
    ("unic-l", "unic-l-336"): {
        "architecture": "vit_large_patch14_224",
        "teachers": ("dinov2-g-336", "metaclip-h-336"),
        "loss.drop_probability": 0.25,
        "image_size": 336,
        "init": "unic-l",
    },
}


ONE_GRID = ("unic-b", "unic-l", "nd", "proteus", "dune")
"""Presets whose teachers have the patches of their students."""


def preset(name: str) -> Config:
    datasets = {"train": DatasetConfig(source="train", rows=1_281_167), "val": DatasetConfig(source="val")}
    return preset_config(
        name,
        SamplesConfig(roots=("/data",), datasets=datasets),
        DistillConfig(validation="val"),
        EvaluateConfig(benchmarks={"val": BenchmarkConfig(train="train", test="val")}),
        views=2,
    )


@pytest.mark.parametrize(("name", "student"), list(STUDENTS))
def test_every_field_that_the_paper_decides_is_given_and_right(name: str, student: str) -> None:
    config = preset(name)
    for path, expected in {**PAPER, **STUDENTS[name, student]}.items():
        node: BaseModel = config.students[student]
        *parents, field = path.split(".")
        for parent in parents:
            node = getattr(node, parent)
        assert field in node.model_fields_set, path
        assert getattr(node, field) == expected, path
    assert config.views.recipe == "unic"


def test_teachers_of_the_second_phase_see_its_resolution() -> None:
    config = preset("unic-l")
    second = {name: config.teachers[name] for name in config.students["unic-l-336"].teachers or ()}
    assert [(t.encoder, t.image_size) for t in second.values()] == [("dinov2-g", 336), ("metaclip-h", 336)]


@pytest.mark.parametrize("name", list(PRESETS))
def test_yaml_of_a_preset_loads_as_the_preset(name: str, tmp_path: Path) -> None:
    config = preset(name)
    (tmp_path / "unic-pipe.yaml").write_text(to_yaml(config, COMMENTS))
    assert load_workspace(tmp_path).config == config
    assert "# paper" in (tmp_path / "unic-pipe.yaml").read_text()


@pytest.mark.parametrize("name", list(PRESETS))
def test_init_writes_a_preset_for_the_data_that_it_finds(name: str, raw_template: Any, tmp_path: Path) -> None:
    from unic_pipe.stages.init.stage import look, preset_for, write_preset

    config, encoders = preset_for(tmp_path, look(raw_template.folder / "data"), name, views=3)
    assert load_workspace(write_preset(tmp_path, name, config)).config == config
    assert encoders == list(dict.fromkeys(t.encoder or n for n, t in config.teachers.items()))
    assert config.views.count == 3
    assert config.distill.validation == "val"
    assert set(config.students) == set(PRESETS[name]()[1])


@pytest.mark.parametrize("name", list(PRESETS))
def test_definitions_of_presets_build_with_stand_in_weights(name: str, raw_template: Any, tmp_path: Path) -> None:
    """The same configuration with random teachers and a student of reduced width and depth; sizes as in the paper."""
    import shutil
    from dataclasses import replace

    import torch

    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.errors import NotFinishedError
    from unic_pipe.stages.distill.model.distiller import Distiller

    shutil.copytree(raw_template.folder / "data", tmp_path / "data")
    (tmp_path / "unic-pipe.yaml").write_text((raw_template.folder / "unic-pipe.yaml").read_text())
    work = type(raw_template)(tmp_path)
    work.index()
    full = preset(name)
    small = {"embed_dim": 48, "depth": 2, "num_heads": 2}
    teachers = {n: t.model_copy(update={"weights": "random:0", "model_args": small}) for n, t in full.teachers.items()}
    staged = "tiny_vit_21m_224"  # of its own size
    students = {
        n: s if s.architecture == staged else s.model_copy(update={"model_args": small})
        for n, s in full.students.items()
    }
    before = load_workspace(tmp_path)
    config = full.model_copy(
        update={
            "samples": before.config.samples,
            "teachers": teachers,
            "students": students,
            "distill": DistillConfig(),
        }
    )
    inventory = Inventory(replace(before, config=config))
    for student, settings in config.students.items():
        waits = settings.init or {"eupe": "eupe-proxy"}.get(student)
        if waits is not None:
            with pytest.raises(NotFinishedError, match=f"waits for students/(eupe-proxy|{waits})"):
                inventory.student_definition(student)
            if name == "unic-l":
                needs = inventory.training_needs(settings.teachers or (), "train")
                assert {n.definition.encoder.grid for n in needs} == {(24, 24)}
            continue
        definition = inventory.student_definition(student)
        assert definition is not None
        side = settings.image_size // (
            32 if settings.architecture == staged else 14 if "patch14" in settings.architecture else 16
        )
        if name in ONE_GRID:
            assert {t.grid for t in definition.teachers} == {(side, side)}
        model = Distiller(definition.config, definition.teachers, torch.device("cpu"))
        assert model.student.grid == (side, side)
