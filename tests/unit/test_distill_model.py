"""Student, ladder, loss and optimizer groups: what they compute, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.ladder import Ladder, rungs
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.config import LadderConfig, LossConfig, OptimizerConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.students import TeacherInput
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.loss import keep_teachers, loss_weights, teacher_losses, total_loss
from unic_pipe.stages.distill.model.schedule import configured_rates, learning_rates, make_optimizer

ARGUMENTS = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
TINY = StudentConfig(architecture="vit_tiny_patch16_224", model_args=ARGUMENTS, image_size=16, drop_path=0.5)

WIDTHS = {"cls": (4,) * 3, "patch": (4,) * 3}


@pytest.fixture(scope="module")
def tiny() -> Student:
    return build_student(TINY)


def test_ladder_is_the_sum_of_its_projectors() -> None:
    torch.manual_seed(0)
    ladder = Ladder(
        rungs(LadderConfig(hidden=5, last_hidden=7), 3),
        WIDTHS,
        {"cls": {"a": 6, "b": 3}, "patch": {"a": 2}},
    )
    with torch.no_grad():
        for parameter in ladder.parameters():
            parameter.normal_()
    cls, patch = [torch.randn(2, 4) for _ in range(3)], [torch.randn(2, 9, 4) for _ in range(3)]
    predictions = ladder(cls, patch)
    assert {k: set(v) for k, v in predictions.items()} == {"cls": {"a", "b"}, "patch": {"a"}}
    for (teacher, token, place), p in ladder.to_projectors().items():
        hidden = F.gelu(F.linear((cls if token == "cls" else patch)[place], p.first_weight_HD, p.first_bias_H))
        predictions[token][teacher] = predictions[token][teacher] - F.linear(
            hidden, p.second_weight_EH, p.second_bias_E
        )
    for by_teacher in predictions.values():
        for rest in by_teacher.values():
            torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-4)


def test_ladder_starts_small_and_without_bias() -> None:
    torch.manual_seed(0)
    ladder = Ladder(rungs(LadderConfig(hidden=64, last_hidden=64), 2), {"cls": (64,) * 2}, {"cls": {"a": 64}})
    for projector in ladder.to_projectors().values():
        assert not projector.first_bias_H.any()
        assert not projector.second_bias_E.any()
        for weight in (projector.first_weight_HD, projector.second_weight_EH):
            assert 0.018 < float(weight.std()) < 0.022


def test_projectors_round_trip() -> None:
    sizes = {"cls": {"a": 6, "b": 3}, "patch": {"a": 2, "b": 5}}
    one, other = (Ladder(rungs(LadderConfig(hidden=5, last_hidden=7), 3), WIDTHS, sizes) for _ in range(2))
    other.load_projectors(one.to_projectors())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="do not match"):
        other.load_projectors({k: v for k, v in one.to_projectors().items() if k[0] == "a"})


@pytest.mark.parametrize(
    ("blocks", "expected", "hidden"),
    [("all", (0, 1, 2), (5, 5, 7)), ("last", (2,), (7,)), ((1, 0), (0, 1), (5, 5)), ((2, 0), (0, 2), (5, 7))],
)
def test_rungs(blocks: object, expected: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    found = rungs(LadderConfig(blocks=blocks, hidden=5, last_hidden=7), 3)  # type: ignore[arg-type]
    assert (found.blocks, found.hidden) == (expected, hidden)


@pytest.mark.parametrize("blocks", [(3,), (-1,), (1, 1), ()])
def test_rungs_refuse_blocks_that_are_not_there(blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"ladder\.blocks"):
        rungs(LadderConfig(blocks=blocks), 3)


def test_student_gives_block_outputs_before_the_norm(tiny: Student) -> None:
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        outputs = tiny(x, (0, 2))
        tokens = tiny.encoder.forward_features(x)
        last = torch.cat([outputs.cls_LBD[1][:, None], outputs.patch_LBPD[1]], dim=1)
        torch.testing.assert_close(tiny.encoder.norm(last), tokens)
    assert [tuple(c.shape) for c in outputs.cls_LBD] == [(2, 16)] * 2
    assert [tuple(p.shape) for p in outputs.patch_LBPD] == [(2, 4, 16)] * 2


def test_registers_are_skipped() -> None:
    with_registers = TINY.model_copy(update={"model_args": ARGUMENTS | {"reg_tokens": 2}})
    outputs = build_student(with_registers)(torch.randn(1, 3, 16, 16), (2,))
    assert outputs.patch_LBPD[0].shape == (1, 4, 16)


def test_drop_path_follows_the_given_draws(tiny: Student) -> None:
    """Rates rise linearly to .5: 0, .25, .5; timm puts nothing where the rate is 0."""
    assert [m.rate for m in tiny.drop_paths] == pytest.approx([0.25, 0.25, 0.5, 0.5])
    x = torch.randn(3, 3, 16, 16)
    draws = torch.tensor([[0.9] * 4, [0.0] * 4, [0.9, 0.9, 0.3, 0.9]])
    with torch.no_grad():
        whole, alone = tiny(x, (0, 1, 2), draws), tiny(x[1:], (0, 1, 2), draws[1:])
        plain = tiny(x, (0, 1, 2))
    torch.testing.assert_close(whole.cls_LBD[2][1:], alone.cls_LBD[2])
    assert torch.equal(whole.cls_LBD[0][1], whole.cls_LBD[2][1])
    assert not torch.allclose(whole.cls_LBD[2][0], plain.cls_LBD[2][0])
    assert torch.equal(whole.cls_LBD[0], plain.cls_LBD[0])


def test_initialisation_is_seeded_and_leaves_global_state_alone(tiny: Student) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again = build_student(TINY)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(again.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(a, b)
    other = build_student(TINY.model_copy(update={"seed": 1}))
    assert not torch.equal(other.encoder.blocks[0].attn.qkv.weight, tiny.encoder.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "no_such_net"}, "no_such_net"),
        ({"model_args": {"nonsense": 1}}, "nonsense"),
        ({"model_args": {"drop_rate": 0.1}}, "drop_rate"),
        ({"model_args": {"drop_path_rate": 0.1}}, "students.NAME.drop_path"),
        ({"model_args": ARGUMENTS | {"num_heads": 3}}, "cannot be built"),
    ],
)
def test_unusable_students_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_student(TINY.model_copy(update=changes))


def test_hardest_teacher_is_always_kept() -> None:
    loss = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]])
    assert keep_teachers(loss, torch.zeros(2, 3), 1.0).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert keep_teachers(loss, torch.zeros(2, 3), 0.0).tolist() == [[1, 1, 1], [1, 1, 1]]
    draws = torch.tensor([[0.4, 0.0, 0.6], [0.5, 0.49, 0.0]])
    assert keep_teachers(loss, draws, 0.5).tolist() == [[0, 1, 1], [1, 0, 0]]


def test_parts_share_one_normalisation() -> None:
    """Two parts add up to the batch's loss, corrected by what all kept; normalising each part would not."""
    loss, keep = torch.rand(6, 3), torch.tensor([[1.0, 1, 1]] * 3 + [[0.0, 1, 0]] * 3)
    whole = total_loss(loss, keep)
    parts = [total_loss(loss[i : i + 3], keep[i : i + 3], count=9.0) for i in (0, 3)]
    torch.testing.assert_close(sum(parts) * 9 / keep.sum(), whole)
    torch.testing.assert_close(loss_weights(keep).sum(), torch.tensor(1.0))


def test_one_token_type_alone() -> None:
    cls, target = torch.randn(4, 6), torch.randn(4, 6)
    losses = teacher_losses({"cls": {"a": cls}}, {"cls": {"a": target}}, LossConfig(cosine=1.0, smooth_l1=0.0))
    torch.testing.assert_close(losses.loss_BT[:, 0], 1 - F.cosine_similarity(cls, target))


def test_only_matrices_decay() -> None:
    teachers = (TeacherInput(name="a", features="0" * 64, grid=(2, 2), cls_dim=6, patch_dim=5),)
    model = Distiller(TINY, teachers, torch.device("cpu"))
    decayed, plain = make_optimizer(model.student, model.ladder, OptimizerConfig(weight_decay=0.03)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.03, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {"bias" in names[id(p)].rpartition(".")[2] or p.ndim == 1 for p in plain["params"]} == {True}
    assert not [names[id(p)] for p in decayed["params"] if p.ndim == 1 or names[id(p)].endswith("bias")]
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_rates_scale_with_the_batch_and_survive_short_trainings() -> None:
    rates = configured_rates(OptimizerConfig(lr=1e-3, batch=512, epochs=4, warmup_epochs=1), 5)
    assert len(rates) == 20
    assert rates.max() == pytest.approx(2e-3)
    assert len(learning_rates(1.0, 0.0, 2, 3, 10)) == 6
    assert len(learning_rates(1.0, 0.0, 2, 3, 0)) == 6


def test_nothing_to_minimise_is_refused() -> None:
    config = TINY.model_copy(update={"loss": LossConfig(cosine=0, smooth_l1=0)})
    with pytest.raises(UserError, match="both 0"):
        Distiller(
            config,
            (TeacherInput(name="a", features="0" * 64, grid=(2, 2), cls_dim=6, patch_dim=5),),
            torch.device("cpu"),
        )


@pytest.mark.slow
def test_compiled_blocks_share_their_code_and_give_the_same() -> None:
    """Three blocks with different drop-path rates: one graph, not one each; the heads of both token types: one each."""
    import torch._dynamo

    deeper = TINY.model_copy(update={"model_args": ARGUMENTS | {"depth": 6}})
    teacher = TeacherInput(name="a", features="0" * 64, grid=(2, 2), cls_dim=6, patch_dim=5)
    plain, compiled = (Distiller(deeper, (teacher,), torch.device("cpu")) for _ in range(2))
    # The tracing is torch.compile's; what a C++ compiler would make of the graphs takes minutes.
    compiled.compile_parts(backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    x, draws = torch.randn(3, 3, 16, 16), torch.rand(3, 12)
    for uniforms in (draws, None):
        results = []
        for model in (plain, compiled):
            predicted = model.ladder(*model.student(x, model.ladder.rungs.blocks, uniforms))
            (predicted["cls"]["a"].sum() + predicted["patch"]["a"].square().sum()).backward()
            results.append(predicted)
        torch.testing.assert_close(results[0], results[1])
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    # The first block has no drop path at all; then with draws and without; two heads.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert not torch._dynamo.utils.counters["graph_break"]
