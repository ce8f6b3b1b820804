"""Ingredients that can be taken away: the ablation's variants, running statistics, averages; and how the loss is made."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unic_pipe.pipeline.workspace.ablation import ablation
from unic_pipe.pipeline.workspace.labels import in_order, origins
from unic_pipe.pipeline.workspace.students import student_order, students_before
from unic_pipe.schemas.config import Config, LossConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.distill.metrics import measures
from unic_pipe.stages.distill.model.average import WeightAverage
from unic_pipe.stages.distill.model.loss import keep_teachers, teacher_losses, total_loss
from unic_pipe.stages.distill.model.standardization import RunningStandardization, momenta


def config(students: dict[str, dict[str, Any]], teachers: dict[str, dict[str, Any]] | None = None) -> Config:
    body = {
        "samples": {"datasets": {"train": {"source": "x"}}},
        "teachers": teachers or {"a": {}, "b": {}},
        "students": students,
    }
    return Config.model_validate(body)


def test_ablation_adds_one_ingredient_at_a_time() -> None:
    variants = ablation(
        config({"main": {"loss": {"drop_probability": 0.25}, "seed": 4, "ladder": {"hidden": 5}}}), "main"
    )
    assert [(name, s.loss.standardize, s.ladder.blocks, s.loss.drop_probability) for name, s in variants.items()] == [
        ("main-basic", "none", "last", 0.0),
        ("main-std", "exact", "last", 0.0),
        ("main-ladder", "exact", "all", 0.0),
        ("main", "exact", "all", 0.25),
    ]
    assert {(s.seed, s.ladder.hidden) for s in variants.values()} == {(4, 5)}


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"loss": {"standardize": "none", "drop_probability": 0.0}}, "no standardization and no teacher dropping"),
        ({"ladder": {"blocks": "last"}}, "has no ladder"),
    ],
)
def test_nothing_to_take_away(student: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ablation(config({"main": student}), "main")


def test_ablation_takes_no_names_away() -> None:
    with pytest.raises(UserError, match="main-std"):
        ablation(config({"main": {}, "main-std": {"seed": 3}}), "main")
    with pytest.raises(UserError, match="No student is named 'mian'"):
        ablation(config({"main": {}}), "mian")


def test_students_are_listed_as_configured_with_their_variants_before_them() -> None:
    names = ["a", "a-live", "b", "b-basic", "b-ladder", "b-ladder-pilot", "b-pilot", "b-std", "old", "an"]
    assert in_order(sorted(names, reverse=True), ["b", "a"]) == [
        "b-basic", "b-std", "b-ladder", "b", "b-ladder-pilot", "b-pilot", "a", "a-live", "an", "old",
    ]  # fmt: skip


def test_names_lead_back_to_the_configured_student() -> None:
    assert origins("main-std-live-pilot") == ["main-std-live-pilot", "main-std-live", "main-std", "main"]
    assert origins("main") == ["main"]


def test_students_that_others_need_come_first() -> None:
    chain = config(
        {"small": {"teachers": ("p",)}, "phase2": {"init": "large", "teachers": ("a",)}, "large": {"teachers": ("a",)}},
        {"a": {}, "p": {"encoder": "student:phase2"}},
    )
    assert students_before(chain, "small") == {"phase2"}
    assert student_order(chain) == ("large", "phase2", "small")


def test_circles_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot wait for itself"):
        config({"one": {"init": "two"}, "two": {"init": "one"}})
    students = config({"one": {}, "two": {}}).students
    circle = {name: s.model_copy(update={"init": "two" if name == "one" else "one"}) for name, s in students.items()}
    with pytest.raises(UserError, match="one → two → one"):
        student_order(config({"one": {}}).model_copy(update={"students": circle}))


def test_momentum_falls_from_1_to_a_thousandth() -> None:
    found = momenta(4, 25)
    assert found.shape == (100,)
    assert found[0] == 1
    assert found[-1] == pytest.approx(0.001, abs=3e-4)
    assert (np.diff(found) < 0).all()
    assert found[50] == pytest.approx(0.5005, abs=1e-3)


def test_running_statistics_go_on_from_a_checkpoint() -> None:
    one = RunningStandardization({"cls": {"a": 5}, "patch": {"a": 4, "b": 3}}, torch.device("cpu"))
    x = torch.randn(6, 4, 3) * 3 + 2
    one("b", "patch", x)
    one.update(1.0)
    other = RunningStandardization({"cls": {"a": 5}, "patch": {"a": 4, "b": 3}}, torch.device("cpu"))
    other.load(one.state())
    assert torch.equal(one("b", "patch", x), other("b", "patch", x))
    one.update(0.3)
    other.update(0.3)
    assert torch.equal(one("b", "patch", x, learn=False), other("b", "patch", x, learn=False))
    flat = x.reshape(-1, 3)
    torch.testing.assert_close(one.state()["b"]["patch"]["mean"], flat.mean(0))
    torch.testing.assert_close(one.state()["b"]["patch"]["std"], flat.std(0) + 1e-6)
    assert one.state()["a"]["cls"]["std"].tolist() == [1.0] * 5


def test_running_statistics_of_parts_are_those_of_the_batch() -> None:
    x = torch.randn(7, 4, 3) * 3 + 2
    whole, parts = (RunningStandardization({"patch": {"a": 3}}, torch.device("cpu")) for _ in range(2))
    whole("a", "patch", x)
    whole.update(1.0)
    for part in x.split(3):
        parts("a", "patch", part)
    parts.update(1.0)
    for name, value in whole.state()["a"]["patch"].items():
        torch.testing.assert_close(parts.state()["a"]["patch"][name], value)


def test_weight_average_follows_and_is_lent() -> None:
    module = nn.Linear(3, 2)
    start = module.weight.detach().clone()
    average = WeightAverage([module], 0.9)
    for _ in range(3):
        with torch.no_grad():
            module.weight += 1
        average.update()
    expected = start + (0.1 * 1 * 0.81 + 0.1 * 2 * 0.9 + 0.1 * 3)
    now = module.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight.detach(), now)
    other = WeightAverage([nn.Linear(3, 2)], 0.9)
    other.load(average.state())
    assert all(torch.equal(a, b) for a, b in zip(other.state(), average.state(), strict=True))


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def loss_operations(images: int) -> Counter[str]:
    shapes = {"cls": (images, 7), "patch": (images, 4, 7)}
    sides = [
        {k: {t: torch.randn(s, requires_grad=grad) for t in "abc"} for k, s in shapes.items()} for grad in (True, False)
    ]
    with Operations() as operations:
        losses = teacher_losses(*sides, LossConfig())  # type: ignore[arg-type]
        keep_BT = keep_teachers(losses.loss_BT, torch.rand(images, 3), 0.5)
        total = total_loss(losses.loss_BT, keep_BT)
        total.backward()
        measures(losses, keep_BT, total)
    return operations.counts


def test_loss_and_dropping_are_no_loop_over_images() -> None:
    few, many = loss_operations(4), loss_operations(64)
    assert few == many
    assert sum(few.values()) > 100
