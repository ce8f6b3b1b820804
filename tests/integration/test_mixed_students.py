"""A student of two datasets and two image sizes, one teacher of which knows one set alone: from plan to export, by one, two
and four processes, with teachers in the loop, its ablation, its bench; and features of klt beside those of int8."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from students import train, weights
from workspace import Quiet, copy_of

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.students import StudentManifest
from unic_pipe.stages.distill.data.batches import BatchPlan
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.mixing import Side, read
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, TargetReader
from unic_pipe.stages.distill.metrics import read_metrics

MIXED = (
    "students.tiny.dataset={test: 1.0, train: 1.0}",
    "students.tiny.optimizer.batch=16",
    "students.tiny.image_sizes=[32, 48]",
    "students.tiny.model_args.dynamic_img_size=true",
    "teachers.lite1.datasets=[test, val]",
    "evaluate.benchmarks={}",
)
SHORT = (*MIXED, "students.tiny.optimizer={epochs: 1, warmup_epochs: 0, batch: 16, lr: 0.03}", "views.count=1")
TERMS = (
    "students.tiny.ladder={kind: mlp, hidden: 24}",
    "students.tiny.loss.grid=larger",
    "students.tiny.loss.standardize={cls: none, patch: phi_s}",
    "students.tiny.loss.terms=[{token: cls, kind: angle}, {token: patch, kind: smooth_l1}]",
)
"""What is measured of targets is measured of the datasets on which each teacher teaches."""
SET = tuple(word for override in (*MIXED, *TERMS) for word in ("--set", override))


@pytest.mark.slow
def test_klt_beside_int8(raw: Any) -> None:
    """Every dataset's integers are decoded by its own calibration."""
    raw.extract("cache.codec=klt", "students.tiny.dataset=train")
    raw.extract("cache.codec=int8", "students.tiny.dataset=test")
    caches = {name: FeatureCache.open(raw.features(f"{name}-lite0")) for name in ("train", "test")}
    assert [cache.definition.codec.name for cache in caches.values()] == ["klt", "int8"]
    rows = np.array([40, 3 + (1 << 40), 17 + (1 << 40), 5])
    with ThreadPoolExecutor(1) as pool:
        sides = []
        for name, cache in caches.items():
            dataset, recipe = raw.dataset(name), cache.definition.recipe
            reader = TargetReader(
                BlockWindow({"lite0": cache}, pool, 9), {("lite0", k): {"": PLAIN} for k in ("cls", "patch")}, 16
            )
            sides.append(Side(ViewImages(dataset, recipe, 0, (32,), 2, dataset.rows()), reader))
        _, targets = read(sides, BatchPlan(rows, 0, 0), pool)
    for token in ("cls", "patch"):
        found = targets["lite0", token].decode().numpy()  # type: ignore[index]
        for place, row in enumerate(rows.tolist()):
            cache, own = list(caches.values())[row >> 40], row & ((1 << 40) - 1)
            expected = cache.read_block(0, token, own // 16).values[own % 16]  # type: ignore[arg-type]
            np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mixed(extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both datasets extracted, one of them for one teacher alone."""
    work = copy_of(extracted_template, tmp_path_factory.mktemp("mixed"))
    before = work.states(*MIXED)
    assert (before["features/train/lite0"], before["features/test/lite0"]) == ("fresh", "missing")
    for old in (work.folder / "features").glob("train-lite1*"):
        shutil.rmtree(old) if not old.is_symlink() else old.unlink()
    work.extract(*MIXED)
    pairs = ("test/lite0", "test/lite1", "train/lite0", "val/lite0-center", "val/lite1-center")
    assert {n: s for n, s in work.states(*MIXED).items() if n.startswith("features/")} == {
        f"features/{pair}": "fresh" for pair in pairs
    }
    assert not work.features("train-lite1").exists()
    return work


def test_a_batch_without_a_place_is_said_before_anything_runs(mixed: Any) -> None:
    (student,) = (a for a in mixed.status(*MIXED, "students.tiny.streams=8").artefacts if a.stage == "distill")
    assert student.next is None
    assert "test gives 40 of 130 images an epoch" in student.reason
    assert "students.tiny.streams to 4, or students.tiny.optimizer.batch to 32" in student.reason


@pytest.mark.slow
def test_two_and_four_processes_see_the_same_batches_and_make_the_same_student(
    ranks: Any, mixed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Parts of single images know one teacher or both, and the last part of every step lacks one."""
    alone, other = (copy_of(mixed, tmp_path_factory.mktemp(name)) for name in ("alone", "other"))
    assert ranks(alone, 1, *SET) == [0], ranks.everything()
    learned = ranks.learned()
    said = "tiny: 16 places of a batch: 4 for test (0.7 passes an epoch, 1 asked), 12 for train (0.93 passes an epoch"
    assert said in " ".join(ranks.said(0).split())
    assert all(sum(row < 1 << 40 for row in rows) == 4 for _, rows in learned.values())
    assert ranks(other, 2, *SET, "--set", "distill.micro_batch=1", signals=[(1, 10, "SIGTERM")]) == [0, 0], (
        ranks.everything()
    )
    stopped = ranks.learned()
    assert ranks(other, 4, *SET, "--set", "distill.micro_batch=1") == [0] * 4, ranks.everything()
    assert stopped | ranks.learned() == learned
    manifest = StudentManifest.from_bytes((alone.student() / "manifest.json").read_bytes(), "manifest")
    assert (manifest.rows, manifest.steps) == (130, 3 * 7)
    assert set(manifest.targets) == {"lite0", "lite1"}
    assert alone.states(*MIXED, *TERMS)["students/tiny"] == "fresh"
    from safetensors.torch import load_file

    mine, theirs = (load_file(work.student() / "export/model.safetensors") for work in (alone, other))
    for name, values in mine.items():
        np.testing.assert_allclose(values.numpy(), theirs[name].numpy(), atol=2e-3)
    means, others = (read_metrics(LocalStore(work.student())) for work in (alone, other))
    for mean, again in zip(means, others, strict=True):
        same = [name for name in mean if name.rpartition("/")[2] in ("loss", "kept", "angle", "smooth_l1")]
        assert {name: again[name] for name in same} == pytest.approx({name: mean[name] for name in same}, rel=2e-2)


def test_its_variants_learn_in_one_pass_and_teachers_in_the_loop_see_the_same(
    mixed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.stages.distill.parallel.world import Context
    from unic_pipe.stages.distill.stage import distill_students, with_variants

    work, alone = (copy_of(mixed, tmp_path_factory.mktemp(name)) for name in ("work", "alone"))
    inventory, names = with_variants(work.inventory(*SHORT, "distill.log_every=1"), ["tiny"])
    reporter = Quiet()
    distill_students(inventory, names, Context(reporter, Stop()), device="cpu", live_check=False)
    together = "Training tiny-basic, tiny-std, tiny-ladder, tiny in one pass: test and train are read and decoded once"
    assert any(line.startswith(together) for line in reporter.said)
    train(alone, "tiny", overrides=(*SHORT, "distill.log_every=1"))
    assert weights(work, "tiny") == weights(alone, "tiny")

    train(alone, "tiny", live=True, overrides=(*SHORT, "distill.log_every=1"))
    cached, live = (read_metrics(LocalStore(alone.student(name))) for name in ("tiny", "tiny-live"))
    same = [f"{teacher}/{what}" for teacher in ("lite0", "lite1") for what in ("loss", "cls/cosine", "patch/smooth_l1")]
    assert len(live) == len(cached)
    assert {name: live[0][name] for name in same} == pytest.approx({name: cached[0][name] for name in same}, rel=1e-2)


def test_the_bench_measures_its_first_dataset_and_says_so(mixed: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the teachers, those that know it."""
    from unic_pipe.cli.main import app

    quick = ["bench", "-c", str(mixed.folder), "--quick", "--repeats", "1", "--rows", "32", "--json", "--device", "cpu"]
    known = ("--set", "teachers.lite1.datasets=[train, val]")
    assert app(args=[*quick, *SET, *known], prog_name="unic-pipe", standalone_mode=False) == 0
    report = json.loads(capfd.readouterr().out)
    assert "Student tiny is trained on a mixture; steps of test alone were measured." in report["notes"]
    assert "Student tiny is trained at several image sizes; 32 was measured." in report["notes"]
    assert {("distill", "student step"), ("live", "teachers")} < {(row["part"], row["name"]) for row in report["rows"]}
