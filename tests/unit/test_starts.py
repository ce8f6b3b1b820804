"""What a student starts from (`init`): which weights are meant, what they bring along, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from unic_pipe.cli.running import check_students
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.pipeline.workspace.students import students_before
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EncoderConfig, StudentConfig
from unic_pipe.schemas.errors import NotFinishedError, UserError
from unic_pipe.stages.distill.model.warm import fitting

VIT = ("students.main.architecture=test_vit", "students.main.model_args={}")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def weights(here: Any) -> Path:
    """timm's file of `test_vit`, with random weights and its classifier."""
    here.index("train")
    torch.manual_seed(0)
    return save(here.folder / "weights/test_vit.r160_in1k.safetensors", timm.create_model("test_vit").state_dict())


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return path


def test_every_way_to_name_weights(here: Any, weights: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    other = save(here.folder / "two.safetensors", {f"{s}.{k}": v for s in ("old", "new") for k, v in state.items()})
    teacher = "teachers.vit={encoder: timm:test_vit, mean: [0.1, 0.2, 0.3], image_size: 96}"
    for init, file, section, mean in (
        ("pretrained", weights, None, HALF),
        ("timm:test_vit", weights, None, HALF),
        ("teacher:vit", weights, None, (0.1, 0.2, 0.3)),
        (f"checkpoint:{weights}", weights, None, HALF),
        ("{encoder: checkpoint:two.safetensors, prefix: new}", other, "new", HALF),
    ):
        inventory = here.look(*VIT, teacher, f"students.main.init={init}")
        found = inventory.student_definition("main")
        assert (found.parent, found.section) == (sha256_of_file(file), section), init
        assert (found.config.mean, inventory.start("main").definition.image_size) == (mean, 32), init
        check_students(inventory)


def test_mean_and_std_are_those_of_the_weights_unless_given(here: Any, weights: Path) -> None:
    warm = (*VIT, "students.main.init=pretrained")
    cold, found = (here.look(*v).student_definition("main") for v in (VIT, warm))
    assert (cold.config.mean, cold.parent) == (StudentConfig().mean, None)
    assert (found.config.mean, found.config.std) == (HALF, HALF)
    given = here.look(*warm, "students.main.mean=[0.485, 0.456, 0.406]").student_definition("main")
    assert (given.config.mean, given.config.std) == (cold.config.mean, HALF), "also where it is what it would be"
    assert "init: none → pretrained" in describe(cold, found)
    save(weights, timm.create_model("test_vit").state_dict())
    again = here.look(*warm).student_definition("main")
    assert digest_of(again) != digest_of(found)
    assert describe(found, again) == "parent digest changed (the weights that it starts from)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("students.main.init=pretrained", "students.main.architecture=vit_small_patch16_224"), "teachers --fetch"),
        (("students.main.init=teacher:deno",), "did you mean dino"),
        (("students.main.init=teacher:dino",), "random weights"),
        (("students.main.init=checkpoint:weights/test_vit.r160_in1k.safetensors",), "does not fit vit_tiny"),
        (("students.main.init=timm:test_vit",), r"cannot start from these weights: \d+ of its \d+ tensors .*cls_token"),
        (("students.main.init=mane",), "no student is named 'mane'"),
        (("students.other={init: main, architecture: test_vit}",), "the architectures differ"),
    ],
)
def test_what_is_refused_before_anything_runs(here: Any, weights: Path, changes: tuple[str, ...], words: str) -> None:
    inventory = here.look(*changes)
    with pytest.raises(UserError, match=rf"(?s)^Student (main|other).*{words}"):
        check_students(inventory)
    reasons = [a.reason for n, a in here.plan(*changes).items() if n.startswith("students/")]
    assert any(reason.startswith("Student ") for reason in reasons)


def test_a_size_that_timm_does_not_resample(here: Any) -> None:
    here.index("train")
    save(here.folder / "levit.safetensors", timm.create_model("levit_128s").state_dict())
    levit = ("students.main.architecture=levit_128s", "students.main.model_args={}", "students.main.image_size=64")
    with pytest.raises(UserError, match=r"wrong shape: .*attention_biases") as error:
        check_students(here.look(*levit, "students.main.init=checkpoint:levit.safetensors"))
    assert "image_size is that of the weights" in str(error.value)


def test_students_are_waited_for_by_any_name(here: Any) -> None:
    here.index("train")
    for init in ("main", "student:main", "teacher:proxy"):
        more = ("teachers.proxy={encoder: student:main}", "students.main.teachers=[dino]")
        tiny = "architecture: vit_tiny_patch16_224, model_args: {depth: 1}, image_size: 32, teachers: [ibot]"
        inventory = here.look(*more, f"students.child={{{tiny}, init: '{init}'}}")
        assert students_before(inventory.config, "child") == {"main"}
        with pytest.raises(NotFinishedError):
            inventory.start("child")


def test_a_packages_weights_are_found_by_timms_name(here: Any) -> None:
    found = here.look().encoder("x", EncoderConfig(encoder="timm:tf_efficientnet_lite0", image_size=64))
    assert (found.definition.conversion, found.definition.mean) == ("efficientnet-lite", HALF)


def test_what_does_not_fit_is_said() -> None:
    own = {name: torch.zeros(2) for name in "abcde"}
    theirs = {**{name: torch.ones(2) for name in "abc"}, "d": torch.ones(3), "x": torch.ones(1)}
    taken, remark = fitting(own, theirs, StudentConfig())
    assert list(taken) == ["a", "b", "c"]
    assert remark == "; 2 of its 5 tensors do not come from there: d, e; 2 of the weights are left out: d, x"
