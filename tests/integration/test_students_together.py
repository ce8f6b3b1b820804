"""Several students of one cache: in one pass, in a chain, as the paper's ablation, and with teachers in the loop."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from students import configure, train, weights

from unic_pipe.schemas.errors import StageError, UserError

MEMBERS: dict[str, dict[str, Any]] = {
    # Two of a kind with other losses, another image size that ends early, and one that sees one teacher's cls only.
    "tiny": {},
    "running": {"loss": {"standardize": "ema"}, "ema": 0.9},
    "early": {"image_size": 16, "ladder": {"blocks": "last"}, "optimizer": {"epochs": 2}},
    "single": {"teachers": ["lite1"], "loss": {"tokens": "cls", "standardize": "none"}, "drop_path": 0.0},
}
STEPS, BATCH = 33, 8


@pytest.fixture(scope="module")
def together(extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All of `MEMBERS`, trained in one call."""
    folder = tmp_path_factory.mktemp("together") / "work"
    shutil.copytree(extracted_template.folder, folder, symlinks=True)
    work = type(extracted_template)(folder)
    configure(work, MEMBERS)
    train(work)
    return work


def test_one_pass_says_so_and_phases_follow_the_ends(together: Any) -> None:
    # Rows of `single` are valid for fewer teachers, but here all rows are valid for all: the same rows.
    assert (
        "Training tiny, running, early, single in one pass: train is read and decoded once for all of them."
        in together.said
    )
    assert [line for line in together.said if line.startswith("distill")] == [
        f"distill tiny, running, early, single: 0/{STEPS * 2 // 3 * BATCH}",
        f"distill tiny, running, single: {STEPS * 2 // 3 * BATCH}/{STEPS * BATCH}",
    ]


@pytest.mark.parametrize("name", ["tiny", "running", "single"])
def test_adaptors_leave_with_the_student(together: Any, name: str, tmp_path: Path) -> None:
    """Against the module that trains: the averaged ladder, undoing each way of standardization."""
    from unic_pipe import load_student
    from unic_pipe.pipeline.workspace.integrity import student_findings
    from unic_pipe.schemas.features import StatisticsDocument
    from unic_pipe.stages.distill.model.average import WeightAverage
    from unic_pipe.stages.distill.model.distiller import Distiller

    found = together.inventory().finished_students[name]
    definition, tokens = found.manifest.definition, ("cls",) if name == "single" else ("cls", "patch")
    files = {t: found.folder / "statistics" / f"{t}.json" for t in found.manifest.statistics}
    statistics = {t: StatisticsDocument.from_bytes(file.read_bytes(), t) for t, file in files.items()}
    model = Distiller(definition.config, definition.teachers, torch.device("cpu"), statistics).eval()
    state = torch.load(sorted(found.folder.glob("checkpoints/*.pt"))[-1], weights_only=True)["state"]
    model.student.load(state["student"])
    model.ladder.load_state_dict(state["ladder"])
    average = WeightAverage([model.student, model.ladder], 0.9)
    average.load(state.get("average", average.state()))

    student = load_student(together.folder / "students" / name)
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    x = torch.stack([student.transform(Image.fromarray(image)) for image in noise])
    ours = student.adapt("lite1")(x)
    with average.in_place(), torch.no_grad():
        theirs = model.ladder(*model.student(x, model.ladder.rungs.blocks))
    for token in tokens:
        mean, std = model.standards["lite1", token].mean_D, model.standards["lite1", token].std_D
        if "running" in state:
            mean, std = (state["running"]["lite1"][token][key].double().numpy() for key in ("mean", "std"))
        expected = theirs[token]["lite1"].double().numpy() * std + mean
        np.testing.assert_allclose(ours.of(token).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert ours.patch.shape == (2, 16, 0 if name == "single" else 1280)

    shutil.copytree(found.folder, tmp_path / "s")
    file = tmp_path / "s" / "export" / "adaptors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    assert student_findings(tmp_path / "s", quick=False)[1] == [("export/adaptors.safetensors", "content")]
    with pytest.raises(StageError, match="is not what was exported"):
        load_student(tmp_path / "s").adapt("lite1")
    file.unlink()
    older = found.export.model_copy(update={"adaptors": None})
    (tmp_path / "s" / "export" / "manifest.json").write_bytes(older.to_bytes())
    with pytest.raises(UserError, match=r"(?s)earlier version.*unic-pipe distill"):
        load_student(tmp_path / "s").adapt("lite1")
    assert torch.equal(load_student(tmp_path / "s")(x).cls, student(x).cls)


def test_seeds_with_one_order_train_in_one_pass(extracted: Any) -> None:
    short = {"optimizer": {"epochs": 1}}
    configure(extracted, {"tiny": {"seeds": [0, 1], "order_seed": 0, **short}, "plain": short})
    assert any("Training tiny-0, tiny-1, plain in one pass" in line for line in train(extracted))
    exports = [(extracted.student(n) / "export/model.safetensors").read_bytes() for n in ("tiny-0", "tiny-1", "plain")]
    assert exports[0] == exports[2] != exports[1]


@pytest.mark.parametrize("name", list(MEMBERS))
def test_everyone_gets_the_bits_that_it_gets_alone(together: Any, extracted: Any, name: str) -> None:
    configure(extracted, MEMBERS)
    assert not any("in one pass" in line for line in train(extracted, name))
    mine, alone = weights(together, name), weights(extracted, name)
    assert mine.keys() == alone.keys()
    assert [file for file in mine if mine[file] != alone[file]] == []


@pytest.mark.parametrize("stops", [pytest.param((60,), marks=pytest.mark.slow), (130, 40)])
def test_stopped_together_and_resumed(together: Any, extracted: Any, stops: tuple[int, ...]) -> None:
    configure(extracted, MEMBERS)
    for stop_at in stops:
        train(extracted, stop_at=stop_at)
    train(extracted)
    for name in MEMBERS:
        assert weights(together, name) == weights(extracted, name), name


def test_one_that_is_ahead_is_caught_up_with(together: Any, extracted: Any) -> None:
    configure(extracted, MEMBERS)
    train(extracted, "tiny", stop_at=10 * BATCH)
    said = [line for line in train(extracted, "running", "tiny") if line.startswith("distill")]
    assert said == [
        f"distill running: 0/{10 * BATCH}",
        f"distill tiny, running: {10 * BATCH}/{STEPS * BATCH}",
    ]
    for name in ("tiny", "running"):
        assert weights(together, name) == weights(extracted, name), name


def test_images_are_decoded_once_for_all(extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import unic_pipe.stages.distill.data.images as images

    decode, count = images.decode_image, [0]

    def counting(data: bytes, *how: Any) -> Any:
        count[0] += 1
        return decode(data, *how)

    monkeypatch.setattr(images, "decode_image", counting)
    configure(extracted, {name: {"image_size": size, "seed": 3} for name, size in (("a", 16), ("b", 24), ("c", 32))})
    train(extracted)
    # 90 training rows in 2 views, of which each epoch leaves 2 out, and 12 validation rows.
    assert 88 * 2 + 12 <= count[0] <= 90 * 2 + 12


def test_other_seeds_and_batches_train_one_after_the_other(extracted: Any) -> None:
    changes = {"a": {"optimizer": {"epochs": 1}}, "b": {"seed": 1, "optimizer": {"epochs": 1}}}
    configure(extracted, changes)
    said = train(extracted)
    assert [line.partition(":")[0] for line in said if line.startswith("distill")] == ["distill a", "distill b"]


def test_one_that_diverges_leaves_the_others_alone(together: Any, extracted: Any) -> None:
    configure(extracted, {**MEMBERS, "wild": {"optimizer": {"lr": 1e30}}, "child": {"init": "wild"}})
    with pytest.raises(StageError, match=r"Student wild: .* not finite") as failure:
        train(extracted)
    assert "clip_norm" in str(failure.value)
    assert any("Student wild: " in line and line.endswith("The other students go on.") for line in extracted.said)
    assert "Student child is not trained: it needs wild, which failed." in extracted.said
    assert set(extracted.inventory().finished_students) == set(MEMBERS)
    for name in MEMBERS:
        assert weights(together, name) == weights(extracted, name), name


def test_weight_average_is_exported_and_validated(together: Any) -> None:
    from safetensors.torch import load_file

    folder = together.student("running")
    state = torch.load(sorted(folder.glob("checkpoints/*.pt"))[-1], weights_only=True)["state"]
    exported = load_file(folder / "export/model.safetensors")
    assert any(torch.equal(exported["blocks.0.attn.qkv.weight"], average) for average in state["average"])
    assert not torch.equal(exported["blocks.0.attn.qkv.weight"], state["student"]["blocks.0.attn.qkv.weight"])
    assert set(state["running"]) == {"lite0", "lite1"}


def test_second_phase_starts_from_the_first(together: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shutil.copytree(together.folder, tmp_path / "work", symlinks=True)
    work = type(together)(tmp_path / "work")
    # The smallest learning rate: after the first step the weights are still those that it started from.
    changes = {"image_size": 48, "optimizer": {"lr": 1e-12, "min_lr": 0.0, "epochs": 1, "warmup_epochs": 0}}
    configure(work, {"child": {**changes, "init": "running"}, **MEMBERS})
    assert [a.name for a in work.status().artefacts if a.stage == "distill"][:2] == [
        "students/running",
        "students/child",
    ]
    said = train(work, "child")
    assert any("starts from student running" in line and "6 × 6" in line for line in said)
    assert not any("afresh" in line for line in said)
    parent, child = (load_file(work.student(n) / "export/model.safetensors") for n in ("running", "child"))
    assert child["pos_embed"].shape[1] == 37
    torch.testing.assert_close(child["blocks.1.mlp.fc1.weight"], parent["blocks.1.mlp.fc1.weight"])
    torch.testing.assert_close(child["pos_embed"][:, 0], parent["pos_embed"][:, 0])
    definition = work.inventory().student_definition("child")
    assert definition.parent == work.inventory().finished_students["running"].export.weights
    state, before = (
        torch.load(sorted(work.student(n).glob("checkpoints/*.pt"))[-1], weights_only=True)["state"]
        for n in ("child", "running")
    )
    old = before["average"][-len(before["ladder"]) :]
    for value, average in zip(state["ladder"].values(), old, strict=True):
        torch.testing.assert_close(value, average)


def test_ladders_match_by_the_order_of_teachers(together: Any, tmp_path: Path) -> None:
    shutil.copytree(together.folder, tmp_path / "work", symlinks=True)
    work = type(together)(tmp_path / "work")
    short = {"optimizer": {"epochs": 1}}
    configure(
        work, {**MEMBERS, "one": {**short, "init": "tiny", "teachers": ["lite1"]}, "two": {**short, "init": "early"}}
    )
    said = train(work, "one", "two")
    # Both teachers have 1,280 dimensions, so the only teacher of `one` takes the first one's projectors.
    assert not any(line.startswith("one: the ladder") for line in said)
    assert (
        "two: the ladder does not fit early's for lite0 cls, lite1 cls, lite0 patch, lite1 patch: it starts afresh there."
        in said
    )


def test_parents_are_needed_and_trained_first(extracted: Any) -> None:
    short = {"optimizer": {"epochs": 1}}
    configure(extracted, {"child": {**short, "init": "base"}, "base": short})
    waiting = extracted.artefact("students/child")
    assert (waiting.state, waiting.reason, waiting.waits_for) == (
        "missing",
        "waits for students/base",
        ("students/base",),
    )
    with pytest.raises(UserError, match="waits for students/base") as error:
        train(extracted, "child")
    assert error.value.hint == "unic-pipe distill --student base"
    train(extracted)
    assert extracted.states()["students/child"] == extracted.states()["students/base"] == "fresh"
    changed = extracted.artefact("students/child", "students.base.optimizer.lr=0.02")
    assert changed.reason == "waits for students/base"
    train(extracted, "base", overrides=("students.base.optimizer.lr=0.02",))
    stale = extracted.artefact("students/child", "students.base.optimizer.lr=0.02")
    assert (stale.state, stale.reason) == ("stale", "differs: parent digest changed (the weights that it starts from)")


def test_another_architecture_cannot_be_started_from(together: Any, tmp_path: Path) -> None:
    shutil.copytree(together.folder, tmp_path / "work", symlinks=True)
    work = type(together)(tmp_path / "work")
    configure(work, {**MEMBERS, "child": {"init": "tiny", "model_args": {"num_heads": 2}}})
    with pytest.raises(UserError, match="the architectures differ"):
        train(work, "child")


@pytest.mark.slow
def test_teachers_in_the_loop_are_resumed_to_the_bit(extracted: Any, tmp_path: Path) -> None:
    other = type(extracted)(tmp_path / "other")
    shutil.copytree(extracted.folder, other.folder, symlinks=True)
    train(extracted, live=True)
    train(other, live=True, stop_at=5 * BATCH)
    assert not (other.folder / "students/tiny-live").exists()
    train(other, live=True)
    assert weights(extracted, "tiny-live") == weights(other, "tiny-live")
    definition = extracted.inventory().finished_students["tiny-live"].manifest.definition
    assert definition.live
    assert definition.model_copy(update={"live": False}) == extracted.inventory().student_definition("tiny")


def test_teachers_in_the_loop_see_what_the_cache_holds(extracted: Any) -> None:
    """The same view gives the same targets, but for the codec's and the batches' rounding."""
    from concurrent.futures import ThreadPoolExecutor

    from unic_pipe.pipeline.cache.reader import FeatureCache
    from unic_pipe.pipeline.cache.statistics import merge_statistics
    from unic_pipe.pipeline.encoders import load_encoder
    from unic_pipe.stages.distill.data.images import ViewImages
    from unic_pipe.stages.distill.data.live import LiveTeacher, live_targets
    from unic_pipe.stages.distill.data.targets import BlockWindow, TargetReader, standard_of

    dataset, inventory = extracted.dataset(), extracted.inventory()
    caches = {t: FeatureCache.open(extracted.folder / f"features/train-{t}") for t in ("lite0", "lite1")}
    wanted = {}
    for teacher, cache in caches.items():
        for token in ("cls", "patch"):
            standard = standard_of(merge_statistics(cache.folder, range(2), dataset.blocks), token)
            wanted[teacher, token] = {standard.name: standard}
    teachers = {t: LiveTeacher(load_encoder(inventory.teacher(t)), c.definition.compute) for t, c in caches.items()}
    rows = np.array([40, 3, 89, 7, 55, 12, 13, 14, 15, 16], dtype=np.int64)
    first = caches["lite0"].definition
    with ThreadPoolExecutor(1) as pool:
        images = ViewImages(dataset, first.recipe, first.view_seed, (32, 64), 0, dataset.rows()).batch(rows, 1, pool)
        cached = TargetReader(BlockWindow(caches, pool, 99), wanted, 16).read(rows, 1)
    live = live_targets(teachers, images, wanted)
    for pair, raw in live.items():
        (name,) = wanted[pair]
        torch.testing.assert_close(raw.decode(name), cached[pair].decode(name), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_ablation_stands_in_one_table_in_the_papers_order(extracted: Any) -> None:
    from typer.testing import CliRunner

    from unic_pipe.cli.main import app
    from unic_pipe.stages.report.stage import report

    configure(extracted, {"tiny": {"optimizer": {"epochs": 1}}, "another": {"optimizer": {"epochs": 1}}})
    folder = ["-c", str(extracted.folder), "--device", "cpu"]
    refused = CliRunner().invoke(app, ["distill", "--ablation", *folder])
    assert isinstance(refused.exception, UserError)
    assert "--ablation takes one student, and there are 2: tiny, another." in str(refused.exception)
    done = CliRunner().invoke(app, ["distill", "--ablation", "--student", "tiny", *folder])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Training tiny-basic, tiny-std, tiny-ladder, tiny in one pass" in done.output
    variants = ["tiny-basic", "tiny-std", "tiny-ladder", "tiny"]
    inventory = extracted.inventory()
    assert list(inventory.finished_students) == variants
    extracted.index()
    records = extracted.evaluate()
    assert list(dict.fromkeys(r.encoder for r in records if r.role == "student")) == variants
    path, _ = report(inventory, records)
    named = re.findall(r">(tiny(?:-\w+)?)<", path.read_text())
    assert any(named[i : i + 4] == variants for i in range(len(named))), named


@pytest.mark.slow
def test_recipes_side_by_side_from_one_cache(extracted: Any) -> None:
    """What cannot be had is refused before anything is trained; then all stand in one report, and `gc` wants them."""
    from typer.testing import CliRunner

    from unic_pipe.cli.main import app
    from unic_pipe.stages.gc.find import Garbage
    from unic_pipe.stages.report.stage import report

    configure(extracted, {"tiny": {"optimizer": {"epochs": 1}}})
    command = ["distill", "--no-live-check", "-c", str(extracted.folder), "--device", "cpu", "--compare"]
    cnn = ("--set", "students.tiny.architecture=test_mambaout", "--set", "students.tiny.model_args={}")
    refused = CliRunner().invoke(app, [*command, "unic,dune,theia", *cnn])
    assert isinstance(refused.exception, UserError)
    assert "so nothing was begun:\n  Student tiny-dune: ladder.kind: block" in refused.exception.message
    assert "tiny-theia" not in refused.exception.message
    assert not list(extracted.folder.glob("students/*"))
    alone = CliRunner().invoke(app, ["distill", "--rates", "own", "-c", str(extracted.folder)])
    assert isinstance(alone.exception, UserError)
    assert alone.exception.hint == "Add --compare unic,am-radio,phi-s,theia"
    done = CliRunner().invoke(app, [*command, "unic,theia"])
    assert done.exit_code == 0, (done.output, done.exception)
    names = ["tiny-unic", "tiny-theia", "tiny-theia-unic-rate"]
    said = " ".join(done.output.split())
    assert f"Training {', '.join(names)} in one pass" in said
    assert "Peak rates, for this batch: tiny-unic 9.4e-06, tiny-theia 3.1e-05, tiny-theia-unic-rate 9.4e-06." in said
    inventory = extracted.inventory()
    assert list(inventory.finished_students) == names
    extracted.index()
    records = extracted.evaluate()
    assert list(dict.fromkeys(r.encoder for r in records if r.role == "student")) == names
    path, _ = report(inventory, records)
    assert "Share of the gradient, tiny-theia-unic-rate" in path.read_text()
    for name in names:
        (extracted.folder / "students" / name).unlink()
    assert not [item.path for item in Garbage(extracted.inventory()).find() if "students/" in item.path]
