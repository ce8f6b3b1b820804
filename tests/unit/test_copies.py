"""Micro-batches that are learned from at once teach what they teach one after the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from distill_world import STUDENT, World, assert_same_student, student_folder
from torch import nn

from unic_pipe.schemas.config import DistillConfig, LadderConfig, LossConfig, OptimizerConfig, StudentConfig
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.parallel import copies
from unic_pipe.stages.distill.parallel.copies import Copies, at_once
from unic_pipe.stages.distill.training import Training

CNN = STUDENT.model_copy(
    update={
        "architecture": "test_efficientnet",
        "model_args": {},
        "image_size": 32,
        "batch_norm": "frozen",
        "ema": 0.9,
        "optimizer": OptimizerConfig(epochs=2, batch=8, lr=0.03, warmup_epochs=0, frozen_steps=3),
    }
)


def two_threads(student: StudentConfig) -> StudentConfig:
    return student.model_copy(update={"threads": 2})


def metrics(world: World) -> Any:
    rows = pq.read_table(student_folder(world) / "metrics.parquet").to_pylist()
    return [{k: v for k, v in row.items() if any(w in k for w in ("gradient", "loss", "spread")) and v} for row in rows]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LEAST_IMAGES", 4)


@pytest.mark.parametrize("student", [STUDENT, CNN], ids=["vit", "cnn"])
def test_the_sums_are_those_of_one_after_the_other(
    student: StudentConfig, template: World, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, used = [], []
    each = Copies.each
    monkeypatch.setattr(Copies, "each", lambda *given: used.append(len(given[2])) or each(*given))
    for name, mine, micro in (("after", student, 4), ("at once", two_threads(student), None)):
        shutil.copytree(template.folder, tmp_path / name, symlinks=True)
        world = World(tmp_path / name)
        assert not used
        assert world.distill(mine, validation=True, micro_batch=micro)
        found.append(world)
    assert set(used) == {2}
    one, other = (student_folder(w) for w in found)
    exported = [(folder / "export/model.safetensors").read_bytes() for folder in (one, other)]
    assert exported[0] == exported[1]
    for mine, its in zip(*map(metrics, found), strict=True):  # validation comes in batches of another size
        assert mine == pytest.approx(its, rel=1e-5)
    assert {"alpha/gradient", "beta/patch/spread"} <= set().union(*metrics(found[0]))


def test_a_training_goes_on_as_it_began(
    template: World, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = []
    for name in ("whole", "stopped"):
        shutil.copytree(template.folder, tmp_path / name, symlinks=True)
        worlds.append(World(tmp_path / name))
    student = two_threads(STUDENT)
    assert worlds[0].distill(student)
    assert not worlds[1].distill(student, stop_after=5)
    (latest,) = worlds[1].folder.glob("students/main-*/latest.json")
    assert json.loads(latest.read_text())["at_once"] == 2
    monkeypatch.setattr(copies, "MOST", 1)
    assert worlds[1].distill(student)
    assert_same_student(*worlds)


def test_a_training_of_an_earlier_version_goes_on_with_whole_steps(
    world: World, small_parts: None, monkeypatch
) -> None:
    student = two_threads(STUDENT)
    with monkeypatch.context() as before:
        before.setattr(copies, "MOST", 1)
        assert not world.distill(student, stop_after=5)
    monkeypatch.setattr(Copies, "each", lambda *_: pytest.fail("it began with whole steps"))
    assert world.distill(student)


@pytest.mark.parametrize(
    ("changes", "threads", "settings", "count"),
    [
        ({}, 1, {}, 1),
        ({}, 2, {}, 2),
        ({}, 3, {}, 3),
        ({}, 8, {}, 4),
        ({}, 5, {}, 4),
        ({}, 6, {}, 3),
        ({}, 10, {}, 2),
        ({}, 2, {"compile": True}, 1),
        ({}, 2, {"compile": "auto"}, 1),
        ({"optimizer": OptimizerConfig(batch=16)}, 4, {}, 2),
        ({"optimizer": OptimizerConfig(batch=8)}, 2, {}, 1),
        ({"loss": LossConfig(standardize="ema")}, 2, {}, 1),
        ({"loss": LossConfig(standardize="batch")}, 2, {}, 1),
        ({"architecture": "test_efficientnet", "model_args": {}, "image_size": 32}, 2, {}, 1),
        ({"architecture": "test_efficientnet", "model_args": {}, "image_size": 32, "batch_norm": "frozen"}, 2, {}, 2),
    ],
)
def test_how_many(changes: dict[str, Any], threads: int, settings: dict[str, Any], count: int) -> None:
    config = STUDENT.model_copy(update={"optimizer": OptimizerConfig(batch=64), **changes})
    assert at_once(config, threads, DistillConfig(**settings)) == count


def test_copies_are_the_same_memory_and_an_error_leaves_no_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    both = Copies(model, 2, 2)
    try:
        pointers = [[x.data_ptr() for x in (*m.parameters(), *m.buffers())] for m in both.models]
        assert pointers[0] == pointers[1]

        def learn(mine: nn.Module, factor: float) -> float:
            mine(factor * torch.eye(2)).sum().backward()
            if factor < 0:
                raise ValueError("no")
            return factor

        assert both.each(learn, [1.0, 2.0]) == [1.0, 2.0]
        with pytest.raises(ValueError, match="no"):
            both.each(learn, [1.0, -2.0])
        assert [x.grad for x in both.models[1].parameters()] == [None] * 4
    finally:
        both.close()


def test_what_waits_is_learned_at_the_end_of_a_step(world: World, small_parts: None, monkeypatch) -> None:
    """Of five parts, two and two and one."""
    seen: list[int] = []
    learn = Training._learn_from
    monkeypatch.setattr(Training, "_learn_from", lambda *given: seen.append(1) or learn(*given))
    monkeypatch.setattr(copies, "at_once", at_once)
    assert world.distill(two_threads(STUDENT), micro_batch=3)
    steps = json.loads((student_folder(world) / "manifest.json").read_text())["steps"]
    assert len(seen) == 6 * steps  # ceil(8 / 3) micro-batches, each in two


def test_weights_that_are_used_twice_have_the_same_gradients_in_every_training(
    template: World, tmp_path: Path, small_parts: None
) -> None:
    """In bfloat16 the cast ones would be kept for both uses, or not, as threads happen to meet."""
    terms = [
        {"token": token, "kind": kind} for token, kind in (("cls", "mse"), ("patch", "mse"), ("patch", "masked_mse"))
    ]
    student = STUDENT.model_copy(
        update={
            "threads": 2,
            "dtype": "bfloat16",
            "ladder": LadderConfig(kind="norm_linear"),
            "loss": LossConfig.model_validate({"terms": tuple(terms), "balance": "sum", "standardize": "none"}),
        }
    )
    found = set()
    for name in ("one", "two", "three"):
        shutil.copytree(template.folder, tmp_path / name, symlinks=True)
        world = World(tmp_path / name)
        assert world.distill(student)
        found.add((student_folder(world) / "export/model.safetensors").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("settings", [{"compile": True}, {"compile": "auto"}])
def test_what_is_compiled_takes_whole_steps(
    settings: dict[str, Any], world: World, small_parts: None, monkeypatch
) -> None:
    """Also where parts were learned from at once before."""
    student = two_threads(STUDENT)
    assert not world.distill(student, stop_after=5)
    monkeypatch.setattr(Copies, "each", lambda *_: pytest.fail("steps are compiled"))
    monkeypatch.setattr(Distiller, "compile_parts", lambda _: None)
    assert not world.distill(student, stop_after=2, compile=True)
    assert world.distill(student, **settings)


def test_what_goes_over_many_small_tensors_has_the_threads_of_one_model() -> None:
    copies = Copies(nn.Linear(1, 1), 2, 4)
    assert copies.apart(torch.get_num_threads) == 2
    with pytest.raises(ZeroDivisionError):
        copies.apart(lambda: 1 // 0)
    copies.close()
    alone, here = Copies(nn.Linear(1, 1), 1, 4), torch.get_num_threads()
    assert alone.apart(torch.get_num_threads) == here
    alone.close()
