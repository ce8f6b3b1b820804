"""The official UNIC implementation's numbers: losses, dropping, ladder, student, schedule."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unic_pipe.pipeline.samples.draws import Purpose, uniforms
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.ladder import Ladder, Projector, rungs
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.stages.distill.model.loss import TeacherLosses, keep_teachers, loss_weights, teacher_losses, total_loss
from unic_pipe.stages.distill.model.schedule import learning_rates
from unic_pipe.stages.distill.model.standardization import RunningStandardization

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "unic.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def weights(golden: Path) -> dict[str, torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        model: dict[str, torch.Tensor] = torch.load(golden / "unic_tiny.pth", weights_only=True)["model"]
    return {key.removeprefix("module."): value for key, value in model.items()}


@pytest.fixture(scope="module")
def student(weights: dict[str, torch.Tensor]) -> Student:
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    config = StudentConfig(architecture="vit_tiny_patch16_224", model_args=arguments, image_size=32, drop_path=0.0)
    student = build_student(config)
    encoder = {
        re.sub(r"^blocks\.0\.", "blocks.", key.removeprefix("encoder.")): value
        for key, value in weights.items()
        if key.startswith("encoder.") and not key.endswith("mask_token")
    }
    student.encoder.load_state_dict(encoder)
    return student.eval()


@pytest.fixture(scope="module")
def ladder(weights: dict[str, torch.Tensor]) -> Ladder:
    heads = "lp.heads"
    teachers = list(dict.fromkeys(k.split(".")[2] for k in weights if k.startswith(heads)))
    dims = {
        token: {t: len(weights[f"{heads}.{t}.{token}.0.layers.2.bias"]) for t in teachers} for token in ("cls", "patch")
    }
    hidden = len(weights[f"{heads}.{teachers[0]}.cls.0.layers.0.bias"])
    last_hidden = len(weights[f"{heads}.{teachers[0]}.cls.2.layers.0.bias"])
    ladder = Ladder(
        rungs(LadderConfig(hidden=hidden, last_hidden=last_hidden), 3), {"cls": (24,) * 3, "patch": (24,) * 3}, dims
    )
    ladder.load_projectors(
        {
            (teacher, token, place): Projector(
                *(
                    weights[f"{heads}.{teacher}.{token}.{place}.layers.{layer}.{kind}"]
                    for layer in (0, 2)
                    for kind in ("weight", "bias")
                )
            )
            for teacher in teachers
            for token in ("cls", "patch")
            for place in range(3)
        }
    )
    return ladder


def losses_of(numbers: dict[str, np.ndarray], cosine: float = 0.5, smooth_l1: float = 0.5) -> TeacherLosses:
    sides = {
        side: {
            token: {
                key.split("/")[2]: torch.from_numpy(numbers[key])
                for key in numbers
                if key.startswith(f"loss/{side}/") and key.endswith(token)
            }
            for token in ("cls", "patch")
        }
        for side in ("student", "teacher")
    }
    return teacher_losses(sides["student"], sides["teacher"], LossConfig(cosine=cosine, smooth_l1=smooth_l1))


@pytest.mark.parametrize(
    ("cosine", "smooth_l1", "key"), [(0.5, 0.5, "loss/per_teacher"), (0.3, 0.9, "loss/per_teacher_cos0.3_sl1_0.9")]
)
def test_loss_per_teacher(numbers: dict[str, np.ndarray], cosine: float, smooth_l1: float, key: str) -> None:
    losses = losses_of(numbers, cosine, smooth_l1)
    for i, teacher in enumerate(losses.teachers):
        np.testing.assert_allclose(losses.loss_BT[:, i].numpy(), numbers[f"{key}/{teacher}"], **CLOSE)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_total_and_coefficients(numbers: dict[str, np.ndarray], probability: float) -> None:
    losses = losses_of(numbers)
    keep = keep_teachers(losses.loss_BT, torch.rand(losses.loss_BT.shape), probability)
    np.testing.assert_allclose(
        total_loss(losses.loss_BT, keep).numpy(), numbers[f"loss/total/drop{probability}"], **CLOSE
    )
    shares = loss_weights(keep).sum(0)
    for i, teacher in enumerate(losses.teachers):
        np.testing.assert_allclose(shares[i].numpy(), numbers[f"loss/coeff/drop{probability}/{teacher}"], **CLOSE)


def test_keep_rate(numbers: dict[str, np.ndarray]) -> None:
    loss_BT = torch.from_numpy(numbers["drop/losses_one_image"]).repeat(4000, 1)
    draws = torch.from_numpy(uniforms(0, Purpose.DROP_TEACHER, 0, np.arange(4000), loss_BT.shape[1]))
    rate = keep_teachers(loss_BT, draws, 0.5).mean(0)
    np.testing.assert_allclose(rate.numpy(), numbers["drop/keep_rate_p0.5_n4000"], atol=0.03)


def test_ladder(numbers: dict[str, np.ndarray], ladder: Ladder) -> None:
    blocks = {k: [torch.from_numpy(numbers[f"ladder/in_{k}/{i}"]) for i in (1, 2, 3)] for k in ("cls", "patch")}
    with torch.no_grad():
        predictions = ladder(blocks["cls"], blocks["patch"])
    for token, by_teacher in predictions.items():
        for teacher, value in by_teacher.items():
            np.testing.assert_allclose(value.numpy(), numbers[f"ladder/out/{teacher}/{token}"], **CLOSE)


def test_student_and_its_ladder(numbers: dict[str, np.ndarray], student: Student, ladder: Ladder) -> None:
    image = torch.from_numpy(numbers["student/image"])
    with torch.no_grad():
        tokens = student.encoder.forward_features(image)
        predictions = ladder(*student(image, ladder.rungs.blocks))
    np.testing.assert_allclose(tokens[:, 0].numpy(), numbers["student/x_norm_clstoken"], **CLOSE)
    np.testing.assert_allclose(tokens[:, 1:].numpy(), numbers["student/x_norm_patchtokens"], **CLOSE)
    for token, by_teacher in predictions.items():
        for teacher, value in by_teacher.items():
            np.testing.assert_allclose(value.numpy(), numbers[f"student/out/{teacher}/{token}"], **CLOSE)


def test_schedule(numbers: dict[str, np.ndarray]) -> None:
    expected = numbers["schedule/cosine_base6e-4_final1e-6_epochs20_iters7_warmup3"]
    np.testing.assert_allclose(learning_rates(6e-4, 1e-6, 20, 7, 3), expected, rtol=1e-12)


def test_running_standardization(numbers: dict[str, np.ndarray]) -> None:
    """Momenta 1, .4 and .1 over three batches; the output is made with the statistics from before the batch."""
    running = RunningStandardization({"patch": {"alpha": numbers["norm/in/0"].shape[-1]}}, torch.device("cpu"))
    for i, momentum in enumerate((1.0, 0.4, 0.1)):
        found = running("alpha", "patch", torch.from_numpy(numbers[f"norm/in/{i}"]))
        running.update(momentum)
        np.testing.assert_allclose(found.numpy(), numbers[f"norm/out/{i}"], **CLOSE)
        for name, value in running.state()["alpha"]["patch"].items():
            np.testing.assert_allclose(value.numpy(), numbers[f"norm/{name}/{i}"].reshape(-1), **CLOSE)


def test_validation_leaves_the_running_standardization_alone(numbers: dict[str, np.ndarray]) -> None:
    x = torch.from_numpy(numbers["norm/in/0"])
    running = RunningStandardization({"patch": {"alpha": x.shape[-1]}}, torch.device("cpu"))
    running("alpha", "patch", x)
    running.update(1.0)
    before = {name: value.clone() for name, value in running.state()["alpha"]["patch"].items()}
    found = running("alpha", "patch", x, learn=False)
    running.update(0.5)
    torch.testing.assert_close(found.mean((0, 1)), torch.zeros(x.shape[-1]), atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in running.state()["alpha"]["patch"].items())
