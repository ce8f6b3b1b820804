"""Training from weights: layers at their own rates, first steps of the ladder alone, and the same bits after stops."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from distill_world import STUDENT, TEACHERS, World, assert_same_student, student_folder
from safetensors.torch import load_file, save_file

from unic_pipe.pipeline.encoders.resolve import resolve_encoder
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.schemas.config import EncoderConfig, OptimizerConfig
from unic_pipe.schemas.students import TeacherInput
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.parent import start_from
from unic_pipe.stages.distill.model.schedule import make_optimizer, set_rate

FROZEN, STEPS = 5, 12
WARM = STUDENT.model_copy(
    update={
        "architecture": "test_efficientnet",
        "model_args": {},
        "image_size": 32,
        "optimizer": STUDENT.optimizer.model_copy(update={"frozen_steps": FROZEN, "layer_decay": 0.5, "lr": 0.3}),
    }
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file of weights, resolved for the student."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = timm.create_model("test_efficientnet")
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    save_file(model.state_dict(), folder / "w.safetensors")
    config = EncoderConfig(encoder="checkpoint:w.safetensors", architecture="test_efficientnet", image_size=32)
    return resolve_encoder("x", config, folder, None)


@pytest.fixture(scope="module")
def warm(template: World, start: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A student trained from weights without interruption."""
    folder = tmp_path_factory.mktemp("warm") / "work"
    shutil.copytree(template.folder, folder, symlinks=True)
    world = World(folder, start)
    assert world.distill(WARM, validation=True)
    return world


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(sorted(folder.glob("checkpoints/*.pt"))[-1], weights_only=True)["state"]
    return found


def test_the_ladder_alone_learns_first(world: World, warm: World, start: Any) -> None:
    """To the bit, buffers and all; and what is not learned has no moments either."""
    theirs = load_file(start.weights_path)
    world.start = start
    assert not world.distill(WARM, stop_after=FROZEN)
    assert any(line.startswith("main: starts from w.safetensors (") for line in world.reporter.said)
    (folder,) = world.folder.glob("students/main-*")
    frozen = state(folder)
    for name, value in frozen["student"].items():
        assert torch.equal(value, theirs[name]), name
    fresh = Distiller(WARM, world.definition(WARM).teachers, torch.device("cpu")).ladder.state_dict()
    assert all(not torch.equal(value, fresh[name]) for name, value in frozen["ladder"].items())
    assert len(frozen["optimizer"]["state"]) == len(frozen["ladder"])
    assert world.distill(WARM, validation=True)
    assert_same_student(world, warm)
    ended = state(student_folder(world))
    learned = [name for name in ended["student"] if not torch.equal(ended["student"][name], theirs[name])]
    assert {"conv_stem.weight", "bn1.running_mean", "bn1.num_batches_tracked"} <= set(learned)
    assert int(ended["student"]["bn1.num_batches_tracked"]) == STEPS - FROZEN
    assert len(ended["optimizer"]["state"]) > len(frozen["optimizer"]["state"])


def test_stopped_twice_and_resumed(world: World, warm: World, start: Any) -> None:
    world.start = start
    for stop in (2, 6):
        assert not world.distill(WARM, stop_after=stop)
    world.start = None  # only the first step needs it
    assert world.distill(WARM, validation=True)
    assert_same_student(world, warm)


def test_biases_by_relative_position_are_resampled_for_a_second_phase(world: World) -> None:
    short = {"architecture": "beit_base_patch16_224", "optimizer": STUDENT.optimizer.model_copy(update={"epochs": 1})}
    beit, name = STUDENT.model_copy(update=short), "blocks.0.attn.relative_position_bias_table"
    assert world.distill(beit)
    parent, said = finished_student("main", student_folder(world)), list[str]()
    assert parent is not None
    larger = beit.model_copy(update={"image_size": 32})
    model = Distiller(larger, world.definition(beit).teachers, torch.device("cpu"))
    start_from(parent, "child", model, tuple(TEACHERS), said.append)
    taken, theirs = model.student.state()[name], load_file(parent.folder / "export/model.safetensors")[name]
    assert (len(theirs), len(taken)) == (3**2 + 3, 7**2 + 3)
    assert torch.equal(taken[-3:], theirs[-3:]), "those of the class token"
    assert f"resampled: {name}" in said[0]


def test_layers_learn_at_their_own_rates() -> None:
    teacher = TeacherInput(name="a", features="0" * 64, grid=(2, 2), cls_dim=3, patch_dim=3)
    model = Distiller(STUDENT, (teacher,), torch.device("cpu"))
    config = OptimizerConfig(layer_decay=0.5, weight_decay=0.1)
    optimizer = make_optimizer(model.student, model.ladder, config)
    set_rate(optimizer, 0.8)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    encoder, heads = model.student.encoder, model.ladder.heads["cls"]
    assert found[id(heads.first[0].weight)] == (0.8, 0.1)
    assert found[id(encoder.norm.weight)] == (0.8, 0)
    assert found[id(encoder.blocks[1].mlp.fc1.weight)] == (0.8, 0.1)
    assert found[id(encoder.blocks[0].mlp.fc1.bias)] == (0.4, 0)
    assert found[id(encoder.patch_embed.proj.weight)] == (0.2, 0.1)
    every = [*model.student.parameters(), *model.ladder.parameters()]
    assert len(found) == sum(len(g["params"]) for g in optimizer.param_groups) == len(every)


def test_layers_of_any_network_are_told_apart() -> None:
    for architecture in ("test_efficientnet", "test_resnet", "test_convnext"):
        student = build_student(WARM.model_copy(update={"architecture": architecture}))
        groups = make_optimizer(student, torch.nn.Linear(1, 1), OptimizerConfig(layer_decay=0.5)).param_groups
        assert len({group.get("lr_scale") for group in groups}) > 3
