"""Training on cached features of made-up teachers: bits, stops and kills, switches, and what stops a run."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from distill_world import STUDENT, TEACHERS, World, assert_same_student, student_folder

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.students import ExportManifest, StudentManifest
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics


def test_finished_student(whole: World) -> None:
    folder = student_folder(whole)
    manifest = StudentManifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest")
    export = ExportManifest.from_bytes((folder / "export/manifest.json").read_bytes(), "export")
    assert folder.name == f"main-{manifest.digest[:8]}"
    assert (manifest.rows, manifest.steps, export.step) == (36, 12, 12)
    assert export.student == manifest.digest
    assert list((folder / "tensorboard").iterdir())


def test_metrics(whole: World) -> None:
    rows = read_metrics(LocalStore(student_folder(whole)))
    training, validation = [r for r in rows if "loss" in r], [r for r in rows if "val/loss" in r]
    assert [r["step"] for r in training] == [2, 4, 6, 8, 10, 12]
    assert [r["epoch"] for r in validation] == [1, 2, 3]
    assert training[-1]["loss"] < training[0]["loss"]
    for row in training:
        terms = [row[f"alpha/{k}/{m}"] for k in ("cls", "patch") for m in ("cosine", "smooth_l1")]
        assert row["alpha/loss"] == pytest.approx(sum(terms) / 4, rel=1e-5)
        assert 1 <= row["alpha/kept"] + row["beta/kept"] < 2
        assert 0 <= row["data_wait"] <= 1
    assert [r["val/alpha/kept"] for r in validation] == [1, 1, 1]


def test_what_the_metrics_tell_changes_no_bit(world: World, whole: World) -> None:
    """Balance is looked at in every second step, or never."""
    rows = [r for r in read_metrics(LocalStore(student_folder(whole))) if "loss" in r]
    assert all(r["alpha/gradient"] + r["beta/gradient"] == pytest.approx(1) for r in rows)
    # Of eight of the images whose statistics are those of the normaliser.
    assert all(r[f"{t}/{k}/spread"] == pytest.approx(1, rel=0.6) for r in rows for t in TEACHERS for k in TOKENS)
    world.distill(validation=True, log_every=1000)
    assert not any("alpha/gradient" in row for row in read_metrics(LocalStore(student_folder(world))))
    for name in ("model", "adaptors"):
        files = [student_folder(w) / f"export/{name}.safetensors" for w in (world, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_last_checkpoint_is_written_beside_the_export(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is finished when both are there."""
    put, exported, keys = LocalStore.put, threading.Event(), list[str]()

    def watched(store: LocalStore, key: str, data: bytes) -> None:
        assert key != "checkpoints/step-00000012.pt" or exported.wait(30), "the export waits for the checkpoint"
        put(store, key, data)
        keys.append(key)
        if key == "export/adaptors.safetensors":
            exported.set()

    monkeypatch.setattr(LocalStore, "put", watched)
    assert world.distill()
    assert keys[-2:] == ["latest.json", "export/manifest.json"]


def test_a_finished_student_is_left_alone(whole: World) -> None:
    folder = student_folder(whole)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert whole.distill()
    assert whole.reporter.said[-1].endswith("nothing to do.")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_random_steps_and_resumed(world: World, whole: World, seed: int) -> None:
    random = np.random.default_rng(seed)
    stops = 0
    while not world.distill(stop_after=int(random.integers(1, 6)), validation=True):
        stops += 1
        assert not (world.folder / "students" / "main").exists()
    assert stops >= 2
    assert_same_student(world, whole)
    mine, theirs = (read_metrics(LocalStore(student_folder(w))) for w in (world, whole))
    for row in mine + theirs:
        for name in TIMINGS:
            row.pop(name, None)
    assert mine == theirs


SCRIPT = """
import sys
from pathlib import Path
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.samples import open_dataset
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.data.rows import Source
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.run import distill
folder = Path(sys.argv[1])
definition = StudentDefinition.model_validate_json((folder / "definition.json").read_bytes())
source = Source(
    open_dataset((folder / "samples/train").resolve(), [folder]),
    {t.name: FeatureCache.open(folder / f"features/train-{t.name}") for t in definition.teachers},
)
settings = DistillConfig(log_every=2, checkpoint_minutes=1e-6)
job = StudentJob("main", definition, (source,))
distill([job], Context(SilentReporter(), Stop()), workdir=folder, settings=settings, device="cpu")
"""


@pytest.mark.slow
def test_killed_and_resumed(world: World, whole: World) -> None:
    (world.folder / "definition.json").write_text(world.definition().model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(world.folder)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(world.folder.glob("students/*/checkpoints/*.pt")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert world.distill(validation=True)
    assert_same_student(world, whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "older bytes"])
def test_damaged_checkpoint_changes_no_weights(world: World, whole: World, damage: str) -> None:
    for _ in range(2):
        world.distill(stop_after=5, validation=True)
    files = sorted(world.folder.glob("students/*/checkpoints/*.pt"))
    raw = files[-1].read_bytes()
    spoiled = {"flip": raw[:999] + bytes([raw[999] ^ 8]) + raw[1000:], "truncate": raw[:500]}
    files[-1].write_bytes(spoiled.get(damage, files[-2].read_bytes()))
    assert world.distill(validation=True)
    assert any("Skipped" in line for line in world.reporter.said)
    assert_same_student(world, whole)


def test_divergence_says_what_to_set_and_keeps_the_last_good_checkpoint(world: World) -> None:
    wild = STUDENT.model_copy(update={"optimizer": STUDENT.optimizer.model_copy(update={"lr": 1e30})})
    with pytest.raises(StageError, match=r"not finite at step .*\n.*clip_norm"):
        world.distill(wild, log_every=1)
    for checkpoint in world.folder.glob("students/*/checkpoints/*.pt"):
        state = torch.load(checkpoint, weights_only=True)["state"]["student"]
        assert all(torch.isfinite(v).all() for v in state.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"tokens": "cls"}},
        {"loss": {"tokens": "patch"}},
        {"loss": {"tokens": "both", "cosine": 0.3, "smooth_l1": 0.9}},
        {"loss": {"cosine": 0.0, "smooth_l1": 1.0}},
        {"loss": {"drop_probability": 0.0}},
        {"loss": {"drop_probability": 1.0}},
        {"loss": {"standardize": "none", "drop_probability": 0.0}},
        {"loss": {"standardize": "ema"}},
        {"teachers": ["alpha"]},
        {"teachers": ["beta"], "loss": {"tokens": "patch"}},
        {"ladder": {"blocks": "last", "hidden": 8, "last_hidden": 12}},
        {"ladder": {"blocks": [0], "hidden": 3, "last_hidden": 5}},
        {"ladder": {"blocks": [0, 1], "hidden": 6, "last_hidden": 5}},
        {"optimizer": {"epochs": 1, "batch": 8, "clip_norm": 0.1, "warmup_epochs": 0}},
        {
            "image_size": 24,
            "model_args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "reg_tokens": 2},
        },
        {"dtype": "bfloat16"},
        {"ema": 0.5, "drop_path": 0.0},
    ],
)
def test_switches(world: World, changes: dict[str, Any]) -> None:
    """Two steps with every ingredient changed or taken away."""
    two_steps = {"epochs": 1, "batch": 16, "lr": 0.1, "warmup_epochs": 0}
    student = StudentConfig.model_validate_json(json.dumps(STUDENT.model_dump() | {"optimizer": two_steps} | changes))
    assert world.distill(student, log_every=1)
    loss = student.loss
    for row in read_metrics(LocalStore(student_folder(world))):
        teachers = student.teachers or ("alpha", "beta")
        tokens = ("cls", "patch") if loss.tokens == "both" else (loss.tokens,)
        terms = {f"{t}/{k}/{m}" for t in teachers for k in tokens for m in ("cosine", "smooth_l1")}
        spreads = {f"{t}/{k}/spread" for t in teachers for k in tokens}
        assert {name for name in row if name.count("/") == 2} == terms | spreads
        for teacher in teachers:
            weighted = [
                loss.cosine * row[f"{teacher}/{token}/cosine"] + loss.smooth_l1 * row[f"{teacher}/{token}/smooth_l1"]
                for token in tokens
            ]
            assert row[f"{teacher}/loss"] == pytest.approx(sum(weighted) / len(tokens), rel=1e-4)
        kept = sum(row[f"{teacher}/kept"] for teacher in teachers)
        assert kept == {0.0: len(teachers), 1.0: 1}.get(loss.drop_probability, pytest.approx(kept))
        assert math.isfinite(row["loss"])


def test_too_few_rows_for_a_batch(world: World) -> None:
    large = STUDENT.model_copy(update={"optimizer": STUDENT.optimizer.model_copy(update={"batch": 64})})
    with pytest.raises(UserError, match="36 usable rows are fewer than one batch"):
        world.distill(large)


def test_too_little_memory_says_what_to_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available = 100

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(StageError, match=r"window_blocks or streams lower"):
        world.distill()
