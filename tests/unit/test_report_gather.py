"""What a report is gathered from: results, students, and features of a working folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from builders import encoder_definition, feature_definition, feature_manifest
from report_page import Page, hex64

from unic_pipe.pipeline.cache.tables import sealed_table
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.evaluations import ResultDefinition, ResultRecord
from unic_pipe.schemas.probes import PROTOCOL
from unic_pipe.schemas.students import StudentDefinition, StudentManifest, TeacherInput
from unic_pipe.stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    Origin,
    Series,
)
from unic_pipe.stages.report.gather import gather
from unic_pipe.stages.report.render import render
from unic_pipe.stages.report.trainings import training_seconds

ENCODER = encoder_definition(4, 2, (3, 3), architecture="tf_efficientnet_lite0", weights=hex64("w"))


def record(encoder: str, role: str, probe: str, metrics: dict[str, float], **changes: object) -> ResultRecord:
    definition = ResultDefinition(
        protocol=PROTOCOL, benchmark_train=hex64("1"), benchmark_test=hex64("2"), features_train=hex64("3"),
        features_test=hex64("4"), encoder=hex64(encoder), probe=probe, settings={}, seed=0,
    )  # fmt: skip
    fields: dict[str, object] = {
        "status": "done",
        "chosen": {"test_samples": 360, "c": 0.1, "converged": True},
        **changes,
    }
    return ResultRecord.model_validate(
        {
            "benchmark": "digits", "encoder": encoder, "role": role, "definition": definition,
            "digest": digest_of(definition), "metrics": metrics, **fields,
        }
    )  # fmt: skip


def write_student(folder: Path, features: str) -> StudentManifest:
    teacher = TeacherInput(name="lite0", features=features, grid=(3, 3), cls_dim=4, patch_dim=2)
    definition = StudentDefinition(
        config=StudentConfig(), dataset=hex64("d"), blocks=1, views=2, teachers=(teacher,)
    )  # fmt: skip
    manifest = StudentManifest(
        name="main", definition=definition, digest=digest_of(definition), statistics={"lite0": hex64("t")}, rows=10,
        rows_digest=hex64("r"), steps=40,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    table = pa.table(
        {
            "step": [10, 20, 30],
            "epoch": [0.25, 0.5, 0.75],
            "loss": [0.7, float("nan"), 0.5],
            "lite0/loss": [0.7, 0.6, 0.5],
            "val/loss": [None, None, 0.55],
        }
    )
    (folder / "metrics.parquet").write_bytes(sealed_table(table))
    return manifest


def test_gather_reads_a_working_folder(tmp_path: Path) -> None:
    student = tmp_path / "students" / "main-12345678"
    manifest = write_student(student, hex64("9"))
    records = [
        record("main", "student", "logistic", {"top1": 0.93, "per_class": 0.92}),
        record("main", "student", "knn", {"top1_k10": 0.91, "top1_k20": 0.9, "top1_k100": 0.95, "top5_k20": 1.0}),
        record("lite0", "teacher", "logistic", {"top1": 0.95}, message="Not converged."),
        record("lite1", "teacher", "logistic", {}, status="failed", message="no labels"),
        record("main-random", "baseline", "logistic", {"top1": 0.8}),
    ]
    folder = tmp_path / "evaluations" / "bench-abcdef01"
    data = gather(tmp_path, folder, {"main": student, "gone": tmp_path / "no"}, records, notes={"digits": "real"})
    assert data.title == "bench"
    assert data.benchmarks == (BenchmarkEntry("digits", "real"),)
    assert data.encoders[0] == EncoderEntry("main", "student", "main-random")
    assert [s.value for s in data.scores] == [0.93, 0.9, 0.95, None, 0.8]
    assert data.scores[0].per_class == 0.92
    assert data.scores[0].samples == 360
    assert data.scores[0].chosen == {"C": 0.1}
    assert data.scores[1].chosen["k"] == 20, "one k for all, never the best on the test set"
    assert data.training[0].curve("loss") == Series((0.25, 0.75), (0.7, 0.5)), "what is not finite is left out"
    assert data.training[0].curve("val/loss") == Series((0.75,), (0.55,))
    assert Origin("student", "main", manifest.digest) in data.origins
    assert Origin("evaluation", "bench", "abcdef01") in data.origins
    page = Page(render(data))
    assert "digits, lite1, linear probe: no labels" in page.text
    what = next(t for t in page.tables if "Peak rate" in t[0])
    assert what[1] == ["main", "vit_small_patch16_224", "random weights", "–", "–", "224", "40 (200 epochs)", "512",
                       "0.0006", "–"], "not exported yet"  # fmt: skip


def test_training_time_is_that_of_its_steps() -> None:
    rows = [{"step": 10, "images_per_s": 100.0}, {"step": 10, "val/loss": 1.0}, {"step": 30, "images_per_s": 50.0}]
    assert training_seconds(rows, batch=20) == 10 * 20 / 100 + 20 * 20 / 50
    assert training_seconds([{"step": 10}], batch=20) is None


def test_gather_measures_features(tmp_path: Path) -> None:
    from unic_pipe.pipeline.cache.records import FeatureFolder
    from unic_pipe.pipeline.storage import LocalStore
    from unic_pipe.schemas.features import BadRow, FileEntry, UnitRecord
    from unic_pipe.schemas.recipes import GENTLE

    definition = feature_definition(ENCODER, 8, "int8", dataset=hex64("d"), recipe=GENTLE)
    digest = digest_of(definition)
    folder = FeatureFolder(LocalStore(tmp_path / "features" / f"train-lite0-{digest[:8]}"))
    folder.create(feature_manifest(definition, encoder="lite0"))
    for view in (0, 1):
        for block, count in ((0, 8), (1, 2)):
            files = (
                FileEntry(path=f"view-{view:03d}/patch/c/{block}/0/0", size=100, xxh3="0" * 32),
                FileEntry(path="statistics", size=7, xxh3="0" * 32),
            )
            unit = UnitRecord(
                definition=digest, view=view, token="patch", block=block, rows=hex64("r"), valid="ff", count=count,
                bad=(BadRow(offset=1, key="k", reason="truncated"),) if block else (), files=files, batch=8,
            )  # fmt: skip
            folder.store.put(f"records/view-{view:03d}/patch/{block:06d}.json", unit.to_bytes())
    student = tmp_path / "students" / "main-12345678"
    write_student(student, digest)
    data = gather(tmp_path, tmp_path / "evaluations" / "bench-abcdef01", {"main": student}, [])
    (row,) = data.features
    assert (row.size, row.views, row.rows, row.bad_rows) == (400, 2, 10, 1)
    assert row.values == 2 * 10 * 9 * 2
    assert row.bits_per_value == pytest.approx(8 * 400 / 360)
    assert row.training
    assert Origin("weights", "lite0", hex64("w")) in data.origins
    table = Page(render(data)).tables[-2]
    assert table[1][:6] == ["lite0", "train", "tf_efficientnet_lite0", "patch", "2", "3 × 3"]
