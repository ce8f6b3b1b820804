"""Classes of a training and a test set that have other numbers, from the images to the scores: pictures of plain colours,
which every encoder tells apart, so that each score below 1 is a class that was taken for another."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.results import result_key
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.probes import BY_NAME, PROTOCOL
from unic_pipe.stages.evaluate.run import write_record
from unic_pipe.stages.indexing import index

CONFIG = """\
samples:
  datasets: {train: {source: TRAIN}, test: {source: test}}
views: {recipe: gentle, count: 1}
teachers: {a: {encoder: "timm:test_vit", weights: "random:0", image_size: 64}}
evaluate: {benchmarks: {b: {train: train, test: test}}, probes: [knn], k_values: [1], baseline: false}
"""


def picture(colour: int, shade: int) -> bytes:
    """32 x 32 pixels of one of twelve hues."""
    pixels = io.BytesIO()
    Image.new("HSV", (32, 32), (colour * 21, 255, 200 + shade)).convert("RGB").save(pixels, "PNG")
    return pixels.getvalue()


def put_folders(root: Path, classes: dict[str, int], shades: range) -> None:
    """A folder for each class, by the number of its colour."""
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for shade in shades:
            (root / name / f"{name}-{shade}.png").write_bytes(picture(colour, shade))


@pytest.fixture
def work(tools: Any, tmp_path: Path) -> Any:
    """A training set of four named classes."""
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG.replace("TRAIN", "train"))
    put_folders(tmp_path / "train", {"ant": 0, "bee": 3, "cat": 6, "dog": 9}, range(4))
    return tools.work(tmp_path)


def evaluated(work: Any) -> tuple[Any, list[tuple[str, float]]]:
    """The record of the only probe, and the accuracy of each class by its name."""
    work.index()
    (record,) = work.evaluate()
    rows = pq.read_table(work.folder / "evaluations/main/classes.parquet").to_pylist()
    return record, [(row["name"], row["accuracy"]) for row in rows]


def test_a_test_set_without_a_class_is_matched_by_name(work: Any) -> None:
    put_folders(work.folder / "test", {"ant": 0, "cat": 6, "dog": 9}, range(4, 7))
    record, classes = evaluated(work)
    assert (record.definition.protocol, record.metrics["top1_k1"]) == (BY_NAME[PROTOCOL], 1)
    assert record.message == "1 of 4 classes has no sample in test (bee)."
    assert classes == [("ant", 1), ("cat", 1), ("dog", 1)]
    assert work.artefact("evaluations/main").state == "fresh"

    # A result as it was before, by number, is not taken for it.
    folder = (work.folder / "evaluations/main").resolve()
    (folder / result_key("b", "a", record.definition)).unlink()
    old = record.definition.model_copy(update={"protocol": PROTOCOL, "classes": None})
    write_record(LocalStore(folder), record.model_copy(update={"definition": old, "digest": digest_of(old)}))
    found = work.artefact("evaluations/main")
    assert (found.state, found.done) == ("missing", 0)
    assert found.reason == "b: classes are matched by name now, results by number are stale"
    assert work.evaluate() == [record]


def test_a_class_that_training_never_shows_is_named_and_counts_as_wrong(work: Any) -> None:
    put_folders(work.folder / "test", {"ant": 0, "bee": 3, "elk": 11}, range(4, 7))
    record, classes = evaluated(work)
    assert record.metrics["top1_k1"] == pytest.approx(2 / 3)
    assert "3 of 9 samples of test belong to 1 class that training never shows (elk)" in record.message
    assert classes == [("ant", 1), ("bee", 1), ("elk", 0)]


def test_folders_named_by_numbers_have_the_numbers_of_cls_members(tools: Any, tmp_path: Path) -> None:
    """`10` sorts before `2`; it is ten all the same."""
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG.replace("TRAIN", "train.tar"))
    members = []
    for colour in range(12):
        for shade in range(3):
            key = f"{colour:02d}-{shade}"
            members += [(f"{key}.png", picture(colour, shade)), (f"{key}.cls", str(colour).encode())]
    tools.put_tar(tmp_path / "train.tar", members)
    put_folders(tmp_path / "test", {str(n): n for n in range(12)}, range(3, 5))
    record, classes = evaluated(tools.work(tmp_path))
    assert (record.metrics["top1_k1"], record.message) == (1, "")
    assert classes == [(str(n), 1) for n in range(12)]


def numbered(labels: list[int | None]) -> list[tuple[str, bytes]]:
    """The members of a tar, a picture for each class number; None: without one."""
    pictures = [(f"{n}.png", picture(n, 0)) for n in range(len(labels))]
    return pictures + [(f"{n}.cls", str(label).encode()) for n, label in enumerate(labels) if label is not None]


@pytest.mark.parametrize(
    ("labels", "config", "reason"),
    [
        ([1, 2, 3, 4], "", "which cannot be places among them. Give test .*first_class: 1"),
        ([0, 1, None], "", "Dataset test: 1 of 3 samples have no label. Label all"),
        ([0, 0], "{b: {train: test, test: train}}", "Dataset test has a single class"),
        (
            [7, 8, 9, 10],
            "{b: {train: test, test: test}, c: {train: train, test: test}}",
            "c is skipped: .*cannot be places",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_features(
    tools: Any, work: Any, labels: list[int | None], config: str, reason: str
) -> None:
    tools.put_tar(work.folder / "test.tar", numbered(labels))
    settings = ["samples.datasets.test.source=test.tar", *([f"evaluate.benchmarks={config}"] if config else [])]
    work.index(*settings)
    (found,) = [a for a in work.status(*settings).artefacts if a.stage == "evaluate"]
    assert re.search(reason, found.reason)
    if "c: " not in config:
        with pytest.raises(UserError, match=f"Nothing to evaluate: .*{reason}"):
            work.evaluate(*settings)
        assert not (work.folder / "features").exists()
    else:  # the other benchmark goes on
        assert {record.benchmark for record in work.evaluate(*settings)} == {"b"}
        assert {path.name for path in (work.folder / "features").iterdir() if path.is_symlink()} == {"test-a-center"}


def test_classes_without_a_text_are_refused_before_any_features(tools: Any, work: Any) -> None:
    tools.put_tar(work.folder / "test.tar", numbered([0, 1, 2]))
    np.savez(work.folder / "texts.npz", embeddings=np.eye(2, 8, dtype=np.float32), names=np.array(["ant", "bee"]))
    settings = ("samples.datasets.test.source=test.tar", "evaluate.benchmarks={}",
                "evaluate.zero_shot={z: {teacher: a, test: test, classes: texts.npz}}")  # fmt: skip
    work.index(*settings)
    with pytest.raises(UserError, match="has the class 2, but there are 2 text embeddings"):
        work.evaluate(*settings)


def test_labels_that_are_written_anew_in_a_tar_of_the_same_size_are_read_again(tools: Any, work: Any) -> None:
    tar, settings = work.folder / "test.tar", ("samples.datasets.test.source=test.tar",)
    tools.put_tar(tar, numbered([0, 0, 0, 3]))
    work.index(*settings)
    before, size = work.dataset("test"), tar.stat().st_size
    tools.put_tar(tar, numbered([0, 1, 2, 3]))
    assert tar.stat().st_size == size
    found = work.artefact("samples/test", *settings)
    assert (found.state, found.reason) == (
        "fresh", "1 tar was written or copied since indexing (test.tar); if with other labels: unic-pipe index"
    )  # fmt: skip
    told, inventory = tools.quiet(), work.inventory(*settings)
    index(inventory, ["test"], told, Stop())  # as other stages do
    assert (told.said, work.dataset("test").manifest) == ([f"dataset test: {found.reason}"], before.manifest)
    work.index(*settings)
    after = work.dataset("test")
    assert after.digest == before.digest
    assert (before.class_numbers.tolist(), after.class_numbers.tolist()) == ([0, 3], [0, 1, 2, 3])
    assert work.artefact("samples/test", *settings).reason == ""

    os.utime(tar, (1, 1))  # a copy
    work.index(*settings)
    assert work.dataset("test").manifest.segments[0].labels_digest == after.manifest.segments[0].labels_digest
    assert work.artefact("samples/test", *settings).reason == ""
    tools.put_tar(tar, [(name, data[:-1] + b"x" if name == "0.png" else data) for name, data in numbered([0, 1, 2, 3])])
    with pytest.raises(UserError, match=r"dataset test: test\.tar changed since it was indexed"):
        work.index(*settings)
