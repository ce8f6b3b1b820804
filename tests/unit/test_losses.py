"""The loss as the configuration says it: one way to write it, what UNIC's stays, what balances do, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from builders import define, features
from made_up import TINY, made_up
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.heads import HEADS, LADDER, Head
from unic_pipe.schemas.losses import KINDS, Kind
from unic_pipe.schemas.presets import PRESETS, expand_presets
from unic_pipe.stages.distill.data.targets import CommonGrid
from unic_pipe.stages.distill.model.loss import entries, kept, kind_function, teacher_losses, total_loss
from unic_pipe.stages.distill.parallel.members import refuse_uneven
from unic_pipe.stages.init.presets import PRESETS as WHOLE

RELEASED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "a", "b4587bdfea241dd7a0cc64c11a4923e3938d12bfd11cb0125dd8123b863b81cb"),
    ({}, "ab", "6fa8df2ff8878bc0337547fe419f21e9525a5c27be161f41eb4cb9100447e5ea"),
    ({"loss": {"standardize": "ema"}}, "ab", "ec122ba1553eeec81e87b67c48626d51112a0851fa1e3da76ec9c5456fbaa7f4"),
    (
        {"loss": {"standardize": "none", "drop_probability": 0.0}},
        "ab",
        "2ea409bdd08b6b3f1df2b2a3fc27f4b80ca3786835435776bde2d7c80910b856",
    ),
    (
        {"loss": {"tokens": "cls", "cosine": 1.0, "smooth_l1": 0.0}},
        "ab",
        "5a49fa8db7f86614280ff81d89925d9c638d132a9db89aeb7e816b6cfbb61245",
    ),
    (
        {"loss": {"tokens": "patch"}, "ladder": {"blocks": "last"}},
        "ab",
        "d6e8273419041a5b4f5c337f88226e0bd64a62fc8b6fb88f3748aca83a8fd02b",
    ),
]
"""Settings, teachers, and the digest of the student before losses had terms."""
RELEASED_PRESETS = {
    "unic-b": ("unic-b", "180204463a37879592f81fe9b12483bf03b8e20fb9749f28160d9a67ab11b327"),
    "unic-l": ("unic-l", "be91881b210f05bbedd0b7fba89bdb0eb56ebe9be8f2af6fd49c1d504f9f6fca"),
    "unic-l-336": ("unic-l", "a9c360eb2ae5b258e23148386096a7683c23380584ad2c6d0a7af8fe5847f183"),
}
TERMS = [
    {"token": token, "kind": kind, "weight": 0.25} for token in ("patch", "cls") for kind in ("smooth_l1", "cosine")
]


def loss(**fields: Any) -> LossConfig:
    return LossConfig.model_validate_json(json.dumps(fields))


def digest(teachers: str = "ab", **fields: Any) -> str:
    return digest_of(define({"loss": loss(**fields)}, {name: features() for name in teachers}))


@pytest.mark.parametrize(("settings", "teachers", "expected"), RELEASED)
def test_students_of_before_keep_their_digests(settings: dict[str, Any], teachers: str, expected: str) -> None:
    assert digest_of(define(settings, {name: features() for name in teachers})) == expected


@pytest.mark.parametrize("student", list(RELEASED_PRESETS))
def test_students_of_the_papers_settings_keep_their_digests(student: str) -> None:
    preset, expected = RELEASED_PRESETS[student]
    config = WHOLE[preset]()[1][student].model_copy(update={"init": None})
    teachers = {name: features() for name in config.teachers or ()}
    assert digest_of(define(config.model_dump(exclude_unset=True), teachers)) == expected
    tree: dict[str, Any] = {"students": {"main": {"preset": student, "teachers": list(config.teachers or ())}}}
    expand_presets(tree)
    again = StudentConfig.model_validate_json(json.dumps(tree["students"]["main"]))
    assert digest_of(define(again.model_dump(exclude_unset=True), teachers)) == expected


def before(prediction: Tensor, target: Tensor, c: float, s: float) -> Tensor:
    """A token type's loss as it was written before there were terms."""
    cosine = 1.0 - F.cosine_similarity(prediction, target, dim=-1)
    smooth_l1 = F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0).mean(-1)
    if prediction.ndim == 3:
        cosine, smooth_l1 = cosine.mean(-1), smooth_l1.mean(-1)
    return c * cosine + s * smooth_l1


def sides(*tokens: str) -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(3)
    shapes = {"cls": (5, 7), "patch": (5, 4, 7)}
    return tuple(  # type: ignore[return-value]
        {t: {n: torch.randn(shapes[t], generator=random).requires_grad_(grad) for n in "ab"} for t in tokens}
        for grad in (True, False)
    )


@pytest.mark.parametrize("tokens", [("cls", "patch"), ("cls",), ("patch",)])
@pytest.mark.parametrize(("c", "s"), [(0.5, 0.5), (0.3, 0.9), (1.0, 0.0)])
def test_the_loss_of_unic_keeps_its_bits(tokens: tuple[str, ...], c: float, s: float) -> None:
    student, teacher = sides(*tokens)
    old_BT = torch.stack(
        [torch.stack([before(student[t][n], teacher[t][n], c, s) for t in tokens]).mean(0) for n in "ab"], dim=1
    )
    total_loss(old_BT, torch.ones_like(old_BT)).backward()
    leaves = [x for by_teacher in student.values() for x in by_teacher.values()]
    old = [x.grad for x in leaves]
    for x in leaves:
        x.grad = None
    config = loss(cosine=c, smooth_l1=s)
    new = teacher_losses(student, teacher, config)
    keep = torch.ones_like(new.loss_BT)
    total_loss(new.loss_BT, keep, entries(config, keep)).backward()
    assert torch.equal(new.loss_BT, old_BT)
    assert all(torch.equal(x.grad, y) for x, y in zip(leaves, old, strict=True))  # type: ignore[arg-type]


def test_what_the_short_form_can_say_is_stored_in_it() -> None:
    plain = digest()
    assert digest(terms=TERMS) == digest(terms=TERMS[::-1]) == plain
    assert digest(terms=[{**term, "teachers": ["b", "a"]} for term in TERMS]) == plain
    assert digest(standardize={"cls": "exact", "patch": "exact"}) == digest(standardize={"patch": "exact"}) == plain
    alone = [{"token": "cls", "kind": "cosine", "weight": 1.0}]
    assert digest(terms=alone) == digest(tokens="cls", cosine=1.0, smooth_l1=0.0)
    assert digest(terms=alone, standardize={"patch": "none"}) == digest(terms=alone)
    assert digest(balance="sum", drop_probability=0.0) == digest(balance="sum") != plain
    others = [
        digest(terms=[*TERMS, {"token": "patch", "kind": "gram"}]),
        digest(terms=TERMS[1:]),
        digest(terms=[{**term, "teachers": ["a"]} for term in TERMS] + [{**TERMS[0], "teachers": ["b"]}]),
        digest(standardize={"patch": "none"}),
        digest(grid="larger"),
    ]
    assert len({plain, *others}) == len(others) + 1


def test_a_normalised_loss_reads_back_as_itself() -> None:
    terms = [*TERMS, {"token": "patch", "kind": "gram", "teachers": ["b"]}]
    for given in ({"terms": terms}, {"terms": TERMS[:2]}, {"terms": TERMS, "standardize": {"cls": "none"}}):
        once = loss(**given).normalised(("a", "b"))
        assert LossConfig.model_validate_json(once.model_dump_json()) == once == once.normalised(("a", "b"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"terms": []}, "at least 1"),
        ({"terms": [{"token": "cls", "kind": "cosines"}]}, "'cosine'"),
        ({"terms": [{"token": "cls", "kind": "gram"}]}, "gram is a loss of patch tokens"),
        ({"terms": [{"token": "cls", "kind": "cosine", "weight": 0}]}, "greater than 0"),
        ({"terms": [TERMS[0], TERMS[0]]}, "smooth_l1 of patch twice"),
        ({"terms": [TERMS[0], {**TERMS[0], "teachers": ["a"]}]}, "smooth_l1 of patch twice"),
        ({"terms": TERMS, "cosine": 0.9}, "leave out terms"),
        ({"terms": TERMS[:2], "tokens": "cls"}, "the terms say which"),
        ({"balance": "sum", "drop_probability": 0.3}, "no teacher is dropped by chance"),
        ({"standardize": {"cls": "ema", "patch": "batch"}}, "choose one"),
        ({"terms": [{"token": "cls", "kind": "kl"}], "standardize": "ema"}, "nothing moves a classifier"),
        ({"terms": TERMS, "classifier": "probe:task"}, "no term is about logits"),
        ({"terms": [{"token": "cls", "kind": "kl", "top_k": 3}]}, "says nothing about a term of kind kl"),
        ({"balance": "own_data"}, "names each dataset's teachers"),
        ({"own": {"train": ["a"]}}, "goes with balance: own_data"),
    ],
)
def test_losses_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        loss(**fields)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"terms": [{**TERMS[0], "teachers": ["a"]}]}, "is about teacher b."),
        ({"terms": [*TERMS, {"token": "patch", "kind": "mse", "teachers": ["b"]}]}, "about teacher b, whom"),
        ({"balance": "own_data", "own": {"train": ["b"]}}, "names a teacher that the student does not have"),
    ],
)
def test_losses_that_do_not_fit_the_students_teachers(fields: dict[str, Any], words: str) -> None:
    teachers = ("a", "b") if "about teacher b." in words else ("a",)
    with pytest.raises(UserError, match=f"Student main: .*{words}"):
        define({"loss": loss(**fields), "teachers": teachers}, {"a": features(), "b": features()})


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"ladder": {"kind": "linear", "hidden": 5}}, "says nothing about a head of kind linear"),
        ({"ladder": {"layers": 2}}, "says nothing about a head of kind ladder"),
        ({"ladder": {"kind": "block"}, "loss": {"standardize": "phi_s"}}, "one last layer for both"),
        ({"loss": {"balance": "own_data", "own": {"other": ["a"]}}}, "every dataset of the student: train"),
    ],
)
def test_students_that_make_no_sense(student: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StudentConfig.model_validate_json(json.dumps(student))
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_a_number_an_image_and_nothing_where_the_student_is_right(kind: str) -> None:
    for token in KINDS[kind].tokens:
        student, teacher = sides(token)
        given = {
            "dispersion": {"dispersion": 0.7},
            "centers": {"centers": 3 * teacher[token]["a"]},
            "masked": {"mask_BP": torch.eye(5, 4) > 0, "cells": 0.8},
            "queue": {"queue": F.normalize(teacher[token]["a"], dim=-1)},
        }
        more: dict[str, Any] = given.get(KINDS[kind].needs or "", {})
        found_B = kind_function(kind)(student[token]["a"], teacher[token]["a"], **more)
        assert found_B.shape == (5,)
        assert (found_B[:4] > 0).all()
        found_B.sum().backward()
        assert student[token]["a"].grad.abs().sum() > 0
        right = kind_function(kind)(teacher[token]["a"], teacher[token]["a"], **more)
        if kind != "soft_ce":  # of which the teacher's entropy is left
            torch.testing.assert_close(right, torch.zeros(5), rtol=0, atol=1e-5)
        mine = {name: x[1:2] if isinstance(x, Tensor) and name != "queue" else x for name, x in more.items()}
        alone = kind_function(kind)(student[token]["a"][1:2], teacher[token]["a"][1:2], **mine)
        torch.testing.assert_close(alone, found_B[1:2])


def test_teachers_have_the_terms_that_name_them() -> None:
    student, teacher = sides("cls", "patch")
    terms = [
        {"token": "cls", "kind": "cosine", "weight": 2.0, "teachers": ["a"]},
        {"token": "patch", "kind": "mse", "weight": 3.0},
    ]
    del student["cls"]["b"], teacher["cls"]["b"]
    losses = teacher_losses(student, teacher, loss(terms=terms))
    mse = {n: (student["patch"][n] - teacher["patch"][n]).square().mean((1, 2)) for n in "ab"}
    cosine = 1 - F.cosine_similarity(student["cls"]["a"], teacher["cls"]["a"])
    torch.testing.assert_close(losses.loss_BT, torch.stack([2 * cosine + 3 * mse["a"], 3 * mse["b"]], dim=1))
    assert set(losses.terms) == {("a", "cls", "cosine"), ("a", "patch", "mse"), ("b", "patch", "mse")}
    # Without patches one teacher has nothing to say, and the other's cls counts for both of its token types.
    without = teacher_losses(student, {"cls": teacher["cls"]}, loss(terms=terms))
    assert without.teachers == ("a",)
    torch.testing.assert_close(without.loss_BT[:, 0], 4 * cosine)


def test_balances() -> None:
    loss_BT = torch.tensor([[1.0, 3.0], [2.0, 5.0], [4.0, 0.0]], requires_grad=True)
    uniforms, own = torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])

    def balanced(config: LossConfig, own_BT: Tensor | None = None) -> float:
        keep_BT = kept(config, loss_BT, uniforms, own_BT)
        return float(total_loss(loss_BT.detach(), keep_BT, entries(config, keep_BT)))

    assert balanced(loss(drop_probability=0.0)) == pytest.approx(15 / 6)
    assert balanced(loss(drop_probability=1.0)) == pytest.approx((3 + 5 + 4) / 3)
    assert balanced(loss(balance="sum")) == pytest.approx(15 / 3)
    mine = loss(balance="own_data", own={"x": ["a"], "y": ["b"]})
    assert balanced(mine, own) == pytest.approx((1 + 2 + 5 + 0) / 4)
    assert balanced(mine, torch.zeros(3, 2)) == 0


def test_patches_are_compared_on_the_larger_grid() -> None:
    cpu = torch.device("cpu")
    teacher, student = torch.randn(2, 16, 3), torch.randn(2, 4, 3)
    grid = CommonGrid((4, 4), (2, 2), "larger", cpu)
    larger = F.interpolate(student.transpose(1, 2).view(2, 3, 2, 2), size=(4, 4), mode="bicubic")
    torch.testing.assert_close(grid.prediction(student), larger.flatten(2).transpose(1, 2))
    assert torch.equal(grid.target(teacher), teacher)
    other = CommonGrid((2, 2), (4, 4), "larger", cpu)
    assert torch.equal(other.prediction(teacher), teacher)
    assert other.target(student).shape == teacher.shape
    assert CommonGrid((4, 4), (2, 2), "student", cpu).target(teacher).shape == student.shape


def test_own_settings_go_before_a_preset() -> None:
    tree: dict[str, Any] = {
        "students": {
            "one": {"preset": "phi-s", "optimizer": {"batch": 64}, "ladder": {"hidden": 5}, "image_size": 32},
            "other": {"preset": "phi-s", "ladder": {"kind": "linear"}},
            "plain": {"seed": 3},
        }
    }
    expand_presets(tree)
    one = StudentConfig.model_validate_json(json.dumps(tree["students"]["one"]))
    assert (one.optimizer.batch, one.optimizer.weight_decay, one.image_size) == (64, 0.02, 32)
    assert (one.ladder.kind, one.ladder.hidden, one.loss.balance) == ("mlp_v2", 5, "sum")
    other = StudentConfig.model_validate_json(json.dumps(tree["students"]["other"]))
    assert other.ladder == LadderConfig(kind="linear")
    assert tree["students"]["plain"] == {"seed": 3}
    with pytest.raises(UserError, match=r"students\.x\.preset: no preset is named 'phi'") as caught:
        expand_presets({"students": {"x": {"preset": "phi"}}})
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in PRESETS)


LATER = {"unic-l", "unic-l-336", "eupe-proxy", "eupe-384", "dune-448"}
"""Other phases and sizes, with the loss and the heads of their first."""


def test_every_head_is_used_or_buildable() -> None:
    from unic_pipe.pipeline.students.heads.heads import BUILDERS

    assert BUILDERS.keys() | {LADDER} == HEADS.keys()


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - LATER))
def test_every_preset_learns_a_batch_by_heart(name: str) -> None:
    shape = {field: 32 for field in ("hidden", "last_hidden") if field in PRESETS[name]["ladder"]}
    tree: dict[str, Any] = {"students": {"main": {**TINY, "preset": name, "ladder": shape}}}
    expand_presets(tree)
    model, batch = made_up(StudentConfig.model_validate_json(json.dumps(tree["students"]["main"])))
    for pair, centers_CD in model.centers.items():  # of several classes, as if they had been measured
        model.centers[pair] = torch.randn(3, centers_CD.shape[1], generator=torch.Generator().manual_seed(1))
    for pair, queue_QE in model.queues.items():
        model.queues[pair] = F.normalize(torch.randn(20, queue_QE.shape[1], generator=torch.Generator().manual_seed(1)))
    for pair, weights_CD in model.classifiers.items():
        model.classifiers[pair] = 3 * torch.randn(20, weights_CD.shape[1], generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for _ in range(25):
        optimizer.zero_grad()
        total = model(batch)[2]
        total.backward()
        optimizer.step()
        found.append(float(total.detach()))
    assert found[-1] < 0.8 * found[0]
    heads = [p for p in model.ladder.parameters() if p.grad is None]
    assert not heads


def test_an_image_is_learned_from_its_datasets_teachers() -> None:
    """Rows of the second dataset of a mixture have numbers of their own."""
    student = {
        **TINY,
        "dataset": {"x": 1.0, "y": 0.5},
        "loss": {"balance": "own_data", "own": {"x": ["b"], "y": ["a", "b"]}},
    }
    rows_B = np.arange(8) + (np.array([0, 0, 0, 1, 1, 0, 1, 0]) << 40)
    model, batch = made_up(StudentConfig.model_validate_json(json.dumps(student)), rows_B)
    _, keep_BT, _ = model(batch)
    assert keep_BT.tolist() == [[float(part), 1.0] for part in (0, 0, 0, 1, 1, 0, 1, 0)]
    assert model(batch, training=False)[1].all()


def test_targets_by_their_own_batch_take_no_parts() -> None:
    config = StudentConfig.model_validate_json(json.dumps({**TINY, "loss": {"standardize": "batch"}}))
    model, batch = made_up(config)
    target = model._targets(batch.targets, True, model.student.grid)["cls"]["a"]
    torch.testing.assert_close(target.mean(0), torch.zeros(8), rtol=0, atol=1e-6)
    torch.testing.assert_close(target.std(0), torch.ones(8))
    refuse_uneven({"main": config}, 1)
    with pytest.raises(UserError, match="by whole batches"):
        refuse_uneven({"main": config}, 2)


def test_one_block_for_two_dimensions_is_refused_before_extraction() -> None:
    with pytest.raises(UserError, match="teacher a have 8 and 9 dimensions"):
        define({"ladder": {"kind": "block"}}, {"a": features()})
    assert define({"ladder": {"kind": "block"}, "loss": {"tokens": "patch"}}, {"a": features()})


def test_a_kind_of_your_own_is_a_file_and_a_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_kinds.py").write_text("def absolute(s, t):\n    return (s - t).abs().flatten(1).mean(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        KINDS, "absolute", Kind("my_kinds:absolute", "|s - t|, mean over dimensions and tokens", "ours")
    )
    mine = {"loss": {"terms": [{"token": "patch", "kind": "absolute"}]}}
    model, batch = made_up(StudentConfig.model_validate_json(json.dumps({**TINY, **mine})))
    losses, _, total = model(batch)
    assert set(losses.terms) == {("a", "patch", "absolute"), ("b", "patch", "absolute")}
    total.backward()
    assert digest("a", **mine["loss"]) != digest("a")


def test_a_head_of_your_own_is_a_function_and_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from unic_pipe.pipeline.students.heads.heads import BUILDERS

    monkeypatch.setitem(HEADS, "bare", Head("Linear without bias", "ours"))
    monkeypatch.setitem(BUILDERS, "bare", lambda config, width, size: torch.nn.Linear(width, size, bias=False))
    model, batch = made_up(StudentConfig.model_validate_json(json.dumps({**TINY, "ladder": {"kind": "bare"}})))
    model(batch)[2].backward()
    found = {tuple(p.shape) for p in model.ladder.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found == {(8, 16), (6, 16)}
