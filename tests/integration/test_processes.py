"""Several processes that train together: the same batches, the same student within rounding, and whole checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from training_ranks import VIEWS, assert_same_student, copy_of, metrics_of, state_of

from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.workspace.documents import checkpoint_step
from unic_pipe.pipeline.workspace.students import student_folder

STUDENTS: dict[str, dict[str, Any]] = {
    # One as it is, one with everything that looks at the whole batch, and one whose layers do; all in one pass.
    "tiny": {},
    "other": {
        "loss": {"standardize": "ema"},
        "ema": 0.9,
        "optimizer": {"clip_norm": 0.5, "frozen_steps": 9, "layer_decay": 0.7},
        "ladder": {"blocks": "last"},
    },
    "cnn": {"architecture": "test_efficientnet", "model_args": {}, "ema": 0.9, "optimizer": {"epochs": 2}},
}
VITS = ("tiny", "other")
STEPS = {"tiny": 33, "other": 33, "cnn": 22}


def configure(work: Any, names: tuple[str, ...] = tuple(STUDENTS)) -> Any:
    yaml, file = YAML(), work.folder / "unic-pipe.yaml"
    body = yaml.load(file)
    base = body["students"]["tiny"]
    body["students"] = {
        name: {
            **base,
            **{k: {**base.get(k, {}), **v} if isinstance(v, dict) and v else v for k, v in STUDENTS[name].items()},
        }
        for name in names
    }
    body["distill"] = {"log_every": 3}
    yaml.dump(body, file)
    return work


@pytest.fixture(scope="module")
def alone(ranks: Any, extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """All students, trained by one process without interruption: (working folder, what was learned from)."""
    work = configure(copy_of(extracted_template, tmp_path_factory.mktemp("alone") / "work"))
    assert ranks(work, 1, *VIEWS) == [0], ranks.everything()
    return work, ranks.learned()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_see_the_same_batches_and_make_the_same_students(
    ranks: Any, alone: tuple[Any, Any], extracted: Any, size: int
) -> None:
    configure(extracted)
    assert ranks(extracted, size, *VIEWS) == [0] * size, ranks.everything()
    assert ranks.learned() == alone[1]
    assert len(alone[1]) == sum(STEPS.values())
    for name in STUDENTS:
        assert_same_student(extracted, alone[0], name)
    # Only the first one speaks; what PyTorch's own log says of a slow connection is not ours.
    said = [[line for line in ranks.said(rank).splitlines() if not line.startswith("[W")] for rank in range(size)]
    assert said[0]
    assert said[1:] == [[]] * (size - 1)


@pytest.mark.slow
def test_stopped_on_four_and_resumed_on_two_and_one(ranks: Any, alone: tuple[Any, Any], extracted: Any) -> None:
    configure(extracted)
    learned: dict[Any, Any] = {}
    # Stopped by one rank alone, not the first; the others hear of it.
    for size, stopper, at in ((4, 3, 7), (2, 1, 19), (1, 0, None)):
        signals = [(stopper, at, "SIGTERM")] if at is not None else []
        assert ranks(extracted, size, *VIEWS, signals=signals) == [0] * size, ranks.everything()
        now = ranks.learned()
        assert not learned.keys() & now.keys()
        learned |= now
        if at is not None:
            (folder,) = extracted.folder.glob("students/tiny-*")
            step = checkpoint_step(folder)
            assert step is not None
            assert at < step <= at + 2
            assert max(s for _, s in learned) == step - 1
            assert "To go on: unic-pipe distill" in ranks.said(0)
    assert learned == alone[1]
    for name in STUDENTS:
        assert_same_student(extracted, alone[0], name)


@pytest.mark.slow
def test_one_world_size_is_bitwise_whatever_happens(ranks: Any, extracted: Any, tmp_path: Path) -> None:
    configure(extracted, ("tiny",))
    other = copy_of(extracted, tmp_path / "other")
    assert ranks(extracted, 2) == [0, 0], ranks.everything()
    for at in (4, 15):
        assert ranks(other, 2, signals=[(at % 2, at, "SIGTERM")]) == [0, 0], ranks.everything()
    assert ranks(other, 2) == [0, 0], ranks.everything()
    mine, theirs = ((work.student() / "export/model.safetensors").read_bytes() for work in (other, extracted))
    assert mine == theirs
    mine, theirs = state_of(other)["optimizer"]["state"], state_of(extracted)["optimizer"]["state"]
    assert all(torch.equal(mine[i][key], x) for i, known in theirs.items() for key, x in known.items())


@pytest.mark.slow
def test_what_metrics_tell_changes_no_bit_of_shared_weights(ranks: Any, extracted: Any, tmp_path: Path) -> None:
    """Gradients are read in every step, or in none, before those of the parts are summed up."""
    configure(extracted, ("tiny",))
    other = copy_of(extracted, tmp_path / "other")
    shared = ("--set", "distill.shard=always", "--set", "distill.micro_batch=3")
    for work, every in ((extracted, 1), (other, 1000)):
        assert ranks(work, 2, *shared, "--set", f"distill.log_every={every}") == [0, 0], ranks.everything()
    assert all("lite0/gradient" in row for row in metrics_of(extracted))
    assert metrics_of(other) == []
    mine, theirs = ((work.student() / "export/model.safetensors").read_bytes() for work in (extracted, other))
    assert mine == theirs


@pytest.mark.slow
def test_parts_of_a_batch_add_up(ranks: Any, alone: tuple[Any, Any], extracted: Any, tmp_path: Path) -> None:
    """Accumulated in one process, and in two that share out the weights; that one goes on in one process without.

    BatchNorm takes no parts, which is said before anything is trained.
    """
    configure(extracted)
    assert ranks(extracted, 2, "--set", "distill.micro_batch=3") == [2, 1], ranks.everything()
    assert ranks.everything().count("Student cnn normalises by the statistics of whole batches (8 images)") == 1
    assert not list(extracted.folder.glob("students/*"))
    configure(extracted, VITS)
    shared = copy_of(extracted, tmp_path / "shared")
    parts = ("--set", "distill.micro_batch=3")
    assert ranks(extracted, 1, *VIEWS, *parts) == [0], ranks.everything()
    assert ranks.learned() == {(name, step): seen for (name, step), seen in alone[1].items() if name in VITS}
    share = (*parts, "--set", "distill.shard=always")
    assert ranks(shared, 2, *VIEWS, *share, signals=[(0, 12, "SIGTERM")]) == [0, 0], ranks.everything()
    assert ranks(shared, 2, *VIEWS, *share, signals=[(1, 20, "SIGTERM")]) == [0, 0], ranks.everything()
    assert ranks(shared, 1, *VIEWS) == [0], ranks.everything()
    for name in VITS:
        assert_same_student(extracted, alone[0], name)
        assert_same_student(shared, alone[0], name)


@pytest.mark.slow
def test_validation_is_shared_out(ranks: Any, extracted: Any, tmp_path: Path) -> None:
    """12 rows in batches of 8 are two for one process, and three for two, one of which does not count.

    Normalised by averaged statistics, of a student whose weights are shared out.
    """
    configure(extracted, ("cnn",))
    yaml, file = YAML(), extracted.folder / "unic-pipe.yaml"
    body = yaml.load(file)
    body["distill"]["validation"] = "val"
    yaml.dump(body, file)
    other = copy_of(extracted, tmp_path / "other")
    assert ranks(extracted, 1) == [0], ranks.everything()
    assert ranks(other, 2, "--set", "distill.shard=always") == [0, 0], ranks.everything()
    assert sum("val/loss" in row for row in metrics_of(other, "cnn")) == 2
    assert_same_student(other, extracted, "cnn")


def test_one_failure_is_one_message(ranks: Any, extracted: Any) -> None:
    """A block that only one of the processes reads at first is damaged."""
    configure(extracted, ("tiny",))
    shards = (extracted.features("train-lite0") / "view-001").rglob("c/**/*")
    shard = min(path for path in shards if path.is_file())
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert ranks(extracted, 2) == [1, 1], ranks.everything()
    said = ranks.everything()
    assert said.count("error:") == 1
    assert "lite0, view 1" in said
    assert "Traceback" not in said


def test_two_trainings_in_one_folder(ranks: Any, extracted: Any) -> None:
    configure(extracted, ("tiny",))
    definition = extracted.inventory().student_definition("tiny")
    name = student_folder(extracted.folder, "tiny", definition).name
    with exclusive(extracted.folder / "runs" / f"{name}.lock", "another training"):
        assert ranks(extracted, 2) == [1, 1], ranks.everything()
    assert ranks.everything().count("is running already") == 1


def test_a_number_of_processes_that_does_not_divide_the_streams(
    ranks: Any, extracted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unic_pipe.cli.errors import guarded
    from unic_pipe.cli.main import app

    monkeypatch.chdir(extracted.folder)
    arguments = ["distill", "--devices", "3"]
    monkeypatch.setattr(sys, "argv", ["unic-pipe", *arguments])
    assert guarded(lambda: app(args=arguments, standalone_mode=False), False) == 2
    assert "Use 1 or 2 or 4 processes." in capsys.readouterr().err
    # torchrun starts them before anybody can say so.
    assert ranks(extracted, 3) == [2, 2, 2], ranks.everything()
    assert ranks.everything().count("Use 1 or 2 or 4 processes.") == 1
