"""Students that are trained on images of several sizes in one phase: which step has which, and what follows from it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import STUDENT, StoppingReporter, World, assert_same_student, content, student_folder
from torch.nn.modules.module import register_module_forward_pre_hook

from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.samples.order import step_size
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import DistillConfig, LadderConfig, LossConfig, StudentConfig
from unic_pipe.schemas.heads import HEADS
from unic_pipe.schemas.students import TeacherInput
from unic_pipe.stages.distill.blueprint import judge
from unic_pipe.stages.distill.data.batches import Batch, BatchPlan
from unic_pipe.stages.distill.data.targets import Affine, RawTargets
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import distill

DYNAMIC = {**STUDENT.model_args, "dynamic_img_size": True}
SIZED = STUDENT.model_copy(update={"model_args": DYNAMIC, "image_sizes": (16, 24, 32)})


@contextmanager
def sizes_seen() -> Iterator[list[tuple[bool, int]]]:
    """Whether a student was in training, and the size of the images that it was shown."""
    seen: list[tuple[bool, int]] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Student):
            seen.append((module.training, inputs[0].shape[-1]))

    with register_module_forward_pre_hook(note):
        yield seen


def test_sizes_take_turns_that_follow_seed_and_step() -> None:
    sizes = (160, 192, 224, 256)
    turns = [[step_size(seed, step, sizes) for step in range(80)] for seed in (0, 1)]
    assert turns[0] != turns[1]
    for drawn in turns:
        assert all(sorted(drawn[i : i + 4]) == list(sizes) for i in range(0, 80, 4))
        assert len({tuple(drawn[i : i + 4]) for i in range(0, 80, 4)}) > 5
    assert StudentConfig(image_sizes=(256, 160)).image_sizes == (160, 256)
    assert digest_of(StudentConfig(image_sizes=None)) == digest_of(StudentConfig())


def test_steps_and_validation_see_their_sizes_and_a_stop_changes_no_bit(template: World, tmp_path: Path) -> None:
    once, other = (World(shutil.copytree(template.folder, tmp_path / n, symlinks=True)) for n in ("once", "other"))
    with sizes_seen() as seen:
        assert once.distill(SIZED, validation=True)
    assert [size for training, size in seen if training] == [step_size(0, i, (16, 24, 32)) for i in range(12)]
    assert {size for training, size in seen if not training} == {16}
    assert not other.distill(SIZED, validation=True, stop_after=5)
    assert other.distill(SIZED, validation=True)
    assert_same_student(once, other)
    exported = load_encoder(str(student_folder(once) / "export"))
    assert (exported.definition.image_size, exported.definition.grid) == (16, (2, 2))


def test_students_of_other_sizes_beside_it_change_no_bit(template: World, tmp_path: Path) -> None:
    """One pass renders what some student needs in a step, and everyone gets the bits that it gets alone."""
    configs = {"main": SIZED, "plain": STUDENT, "few": SIZED.model_copy(update={"image_sizes": (16, 40)})}
    both = World(shutil.copytree(template.folder, tmp_path / "both", symlinks=True))
    jobs = [StudentJob(name, both.definition(config), (both.source(),)) for name, config in configs.items()]
    reporter = StoppingReporter(None)
    context = Context(reporter, reporter.stop)
    assert not distill(jobs, context, workdir=both.folder, settings=DistillConfig(log_every=2), device="cpu")
    assert any("main, plain, few in one pass" in line for line in reporter.said)
    for name, config in configs.items():
        alone = World(shutil.copytree(template.folder, tmp_path / name, symlinks=True))
        assert alone.distill(config)
        mine = content((both.folder / "students" / name).resolve())
        theirs = content(student_folder(alone))
        weights = "export/model.safetensors"
        assert mine[weights] == theirs[weights]


@pytest.mark.parametrize(("kind", "grid"), [("ladder", "student"), *((kind, "larger") for kind in HEADS)])
def test_a_step_is_that_of_a_network_of_its_size(kind: str, grid: Any) -> None:
    """A convolutional network's maps, grid, targets and loss, against the same weights in a student of that size."""
    shape = {"architecture": "test_efficientnet", "model_args": {}, "ladder": LadderConfig(kind=kind)}
    shape["loss"] = LossConfig(standardize="none", grid=grid)
    config = STUDENT.model_copy(update={**shape, "image_size": 64, "image_sizes": (32, 96)})
    teachers = (TeacherInput(name="a", features="0" * 64, grid=(3, 3), cls_dim=6, patch_dim=6),)
    model = Distiller(config, teachers, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    affine = {"": Affine(torch.ones(1, 1), torch.zeros(1, 1))}
    targets = {
        ("a", token): RawTargets(torch.randn(shape, generator=random), torch.zeros(4, dtype=torch.int64), affine)
        for token, shape in (("cls", (4, 6)), ("patch", (4, 9, 6)))
    }
    images = {s: torch.randint(0, 256, (4, 3, s, s), dtype=torch.uint8, generator=random) for s in (32, 64, 96)}
    draws = torch.ones(4, 1), torch.ones(4, len(model.student.drop_paths))
    seen = Counter[int]()
    for step in range(2):
        size = step_size(0, step, (32, 96))
        other = Distiller(config.model_copy(update={"image_size": size, "image_sizes": None}), teachers, model.device)
        other.load_state_dict(model.state_dict())
        assert other.student.grid != model.student.grid
        batch = Batch(BatchPlan(np.arange(4), 0, 0, step=step), images, targets, *draws)  # type: ignore[arg-type]
        assert torch.equal(model(batch)[2], other(replace(batch, plan=BatchPlan(np.arange(4), 0, 0)))[2])
        seen[size] += 1
    assert seen == {32: 1, 96: 1}


@pytest.mark.parametrize(
    ("architecture", "arguments", "words", "hint"),
    [
        ("vit_tiny_patch16_224", STUDENT.model_args, "was made for 16 pixels", "model_args.dynamic_img_size: true"),
        ("vit_tiny_patch16_224", {**DYNAMIC, "patch_size": 16}, "asks for 24", "Leave out"),
        ("hiera_tiny_224", {}, "was made for 224 pixels", "Leave out"),
    ],
)
def test_networks_of_one_size_are_refused(architecture: str, arguments: Any, words: str, hint: str) -> None:
    size = 224 if "hiera" in architecture else 16
    shape = {"architecture": architecture, "model_args": arguments, "image_size": size, "image_sizes": (size, size + 8)}
    verdict = judge(STUDENT.model_copy(update=shape))
    assert words in (verdict.problem or "")
    assert hint in (verdict.hint or "")


def test_networks_of_any_size_are_not(template: World) -> None:
    assert judge(SIZED).problem is None
    convolutional = {"architecture": "test_efficientnet", "model_args": {}, "image_size": 32, "image_sizes": (32, 40)}
    assert judge(STUDENT.model_copy(update=convolutional)).problem is None
