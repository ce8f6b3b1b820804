"""The report as text: a Markdown table to paste, a CSV for scripts; written beside the page, left alone when equal."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from unic_pipe.pipeline.workspace.results import dataset_digest
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.evaluations import ResultDefinition, ResultRecord
from unic_pipe.schemas.probes import PROTOCOL
from unic_pipe.stages.report.data import BenchmarkEntry, EncoderEntry, ReportData, Score, Skipped
from unic_pipe.stages.report.files import CSV, CSV_COLUMNS, MARKDOWN, escaped, markdown, results_csv, write_text
from unic_pipe.stages.report.scores import curves_of, scores_of

ENCODERS = (EncoderEntry("main", "student"), EncoderEntry("lite0", "teacher"), EncoderEntry("lite1", "teacher"))
VALUES = {"digits": (0.9389, 0.95, 0.9306), "shifted": (0.8917, 0.8833, 0.875)}


def hex64(text: str) -> str:
    return (text.encode().hex() * 64)[:64]


def report_data() -> ReportData:
    scores = tuple(
        Score(bench, encoder.name, "logistic", value, samples=360, encoder_digest=hex64(encoder.name))
        for bench, row in VALUES.items()
        for encoder, value in zip(ENCODERS, row, strict=True)
    )
    return ReportData("demo", tuple(map(BenchmarkEntry, VALUES)), ENCODERS, scores, protocol=PROTOCOL)


def record(encoder: str, probe: str = "logistic", bench: str = "digits", **changes: object) -> ResultRecord:
    definition = ResultDefinition.model_construct(
        protocol=PROTOCOL, benchmark_train=hex64("1"), benchmark_test=hex64("2"), features_train=hex64("3"),
        features_test=hex64("4"), encoder=hex64(encoder), probe=probe, settings={}, seed=0,
    )  # fmt: skip
    fields = {
        "benchmark": bench, "encoder": encoder, "role": "teacher", "definition": definition,
        "digest": digest_of(definition), "status": "done", "metrics": {"top1": 0.5, "per_class": 0.4}, "chosen": {},
        "message": "",
    }  # fmt: skip
    return ResultRecord.model_construct(**{**fields, **changes})


def cells(line: str) -> list[str]:
    return [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_encoders_down_benchmarks_across_and_the_best_bold() -> None:
    lines = [line for line in markdown(report_data()).splitlines() if line.startswith("|")]
    assert cells(lines[0]) == ["", "digits", "shifted", "Mean", "Mean log-odds"]
    assert cells(lines[2]) == ["main (student)", "93.9", "**89.2**", "91.5", "2.42"]
    assert cells(lines[3]) == ["Δ best teacher", "−1.1", "+0.8", "−0.1", ""]
    assert cells(lines[4])[:3] == ["lite0 (teacher)", "**95.0**", "88.3"]
    assert {len(cells(line)) for line in lines} == {5}


def test_markdown_says_what_failed_what_was_skipped_and_what_it_rests_on() -> None:
    data = report_data()
    failed = Score("digits", "lite1", "logistic", None, message="no\nlabels")
    kept = [s for s in data.scores if (s.benchmark, s.encoder) != ("digits", "lite1")]
    data = replace(data, scores=(*kept, failed), skipped=(Skipped("ade20k", "no files"),))
    text = markdown(data)
    assert "- failed: digits, lite1, logistic: no labels" in text
    assert "- skipped: ade20k: no files" in text
    assert f"Protocol `{PROTOCOL}`; main `{hex64('main')[:8]}`" in text
    assert "| lite1 (teacher) | failed |" in text


def test_names_cannot_break_a_markdown_table() -> None:
    name = "a|b*c_d`<i>"
    data = replace(report_data(), benchmarks=(BenchmarkEntry(name),), scores=(Score(name, "main", "logistic", 0.5),))
    lines = [line for line in markdown(data).splitlines() if line.startswith("|")]
    assert {len(cells(line)) for line in lines} == {2}
    assert escaped(name) == r"a\|b\*c\_d\`\<i\>"


def test_csv_holds_every_metric_with_its_digests_and_failures_without_a_value() -> None:
    records = [record("main"), record("lite0", metrics={}, status="failed", message='bad,\n"data"')]
    data = replace(report_data(), benchmarks=(BenchmarkEntry("digits", axis="IN-1K"),), skipped=(Skipped("dtd", "x"),))
    rows = list(csv.DictReader(io.StringIO(results_csv(data, records))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(r["metric"], r["value"]) for r in rows[:2]] == [("top1", "0.5"), ("per_class", "0.4")]
    assert rows[0]["encoder_digest"] == hex64("main")
    assert rows[0]["dataset_digest"] == dataset_digest(records[0].definition)
    assert (rows[0]["axis"], rows[0]["protocol"]) == ("IN-1K", PROTOCOL)
    assert (rows[2]["status"], rows[2]["value"], rows[2]["message"]) == ("failed", "", 'bad, "data"')
    assert (rows[3]["benchmark"], rows[3]["status"]) == ("dtd", "skipped")


def test_equal_files_are_left_alone_and_changed_ones_replaced(tmp_path: Path) -> None:
    write_text(tmp_path, report_data(), [record("main")])
    before = {name: (tmp_path / name).stat().st_ino for name in (MARKDOWN, CSV)}
    write_text(tmp_path, report_data(), [record("main")])
    assert {name: (tmp_path / name).stat().st_ino for name in (MARKDOWN, CSV)} == before
    write_text(tmp_path, replace(report_data(), title="other"), [record("main"), record("lite0")])
    assert all((tmp_path / name).stat().st_ino != inode for name, inode in before.items())
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.parametrize(("both", "probes"), [(False, {"linear", "knn"}), (True, {"logistic", "sgd", "knn"})])
def test_small_and_large_benchmarks_share_the_linear_table_unless_one_has_both(both: bool, probes: set[str]) -> None:
    records = [record("main", "logistic", "dtd"), record("main", "sgd", "in1k"), record("main", "knn", "in1k")]
    records += [record("main", "sgd", "dtd")] if both else []
    assert {s.probe for s in scores_of(records)} == probes


def test_curves_are_read_from_the_metrics_in_order() -> None:
    metrics = {"top1_k100": 0.7, "top1_k10": 0.9, "top1_k20": 0.8, "top5_k10": 1.0, "top1": 0.5}
    assert curves_of(metrics) == {"k": ((10.0, 0.9), (20.0, 0.8), (100.0, 0.7))}


def test_few_shot_curves_are_named_by_their_classifier() -> None:
    metrics = {"top1_logistic_5shot": 0.6, "top1_logistic_1shot": 0.3, "top1_centroid_1shot": 0.4, "top1": 0.6}
    assert curves_of(metrics) == {"logistic": ((1.0, 0.3), (5.0, 0.6)), "centroid": ((1.0, 0.4),)}
    (score,) = scores_of([record("main", metrics=metrics)])
    assert (score.value, score.metric) == (0.6, "top1")
