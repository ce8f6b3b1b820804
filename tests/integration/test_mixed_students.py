"""A student of two datasets from plan to export, by one process and by two; and features of klt beside those of int8."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from workspace import copy_of

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.schemas.students import StudentManifest
from unic_pipe.stages.distill.data.batches import BatchPlan
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.mixing import Side, read
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, TargetReader

MIXED = ("students.tiny.dataset={test: 1.0, train: 1.0}", "students.tiny.streams=2", "evaluate.benchmarks={}")
OWN = "students.tiny.loss={balance: own_data, own: {test: [lite1], train: [lite0, lite1]}}"
"""Images of one dataset have a teacher less, so that shares of a batch learn from different numbers of teachers."""
SET = tuple(word for override in (*MIXED, OWN) for word in ("--set", override))


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
    """Both datasets extracted for both teachers."""
    work = copy_of(extracted_template, tmp_path_factory.mktemp("mixed"))
    before = work.states(*MIXED)
    assert (before["features/train/lite0"], before["features/test/lite0"]) == ("fresh", "missing")
    work.extract(*MIXED)
    assert {work.states(*MIXED)[f"features/{d}/{t}"] for d in ("test", "train") for t in ("lite0", "lite1")} == {
        "fresh"
    }
    return work


def test_a_batch_without_a_place_is_said_before_anything_runs(mixed: Any) -> None:
    (student,) = (a for a in mixed.status(*MIXED, "students.tiny.streams=4").artefacts if a.stage == "distill")
    assert student.next is None
    assert "test gives 40 of 130 images an epoch" in student.reason
    assert "students.tiny.streams to 2, or students.tiny.optimizer.batch to 16" in student.reason


def test_two_processes_see_the_same_batches_and_make_the_same_student(
    ranks: Any, mixed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone, other = (copy_of(mixed, tmp_path_factory.mktemp(name)) for name in ("alone", "other"))
    assert ranks(alone, 1, *SET) == [0], ranks.everything()
    learned = ranks.learned()
    assert all(sum(row < 1 << 40 for row in rows) == 2 for _, rows in learned.values())
    assert ranks(other, 2, *SET, "--set", "distill.micro_batch=3", signals=[(1, 20, "SIGTERM")]) == [0, 0], (
        ranks.everything()
    )
    stopped = ranks.learned()
    assert ranks(other, 2, *SET, "--set", "distill.micro_batch=3") == [0, 0], ranks.everything()
    assert stopped | ranks.learned() == learned
    manifest = StudentManifest.from_bytes((alone.student() / "manifest.json").read_bytes(), "manifest")
    assert (manifest.rows, manifest.steps) == (130, 3 * 15)
    assert alone.states(*MIXED, OWN)["students/tiny"] == "fresh"
    from safetensors.torch import load_file

    mine, theirs = (load_file(work.student() / "export/model.safetensors") for work in (alone, other))
    for name, values in mine.items():
        np.testing.assert_allclose(values.numpy(), theirs[name].numpy(), atol=2e-3)
