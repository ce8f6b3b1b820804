"""A probe of one's own: one file, and one line in the registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from unic_pipe.schemas.probes import PROBES, Probe

CODE = '''
"""Nearest class mean, by Euclidean distance."""

import numpy as np

from unic_pipe.stages.evaluate.outcome import Outcome
from unic_pipe.stages.evaluate.scoring import accuracy


def run(task, setting):
    means_CD = np.stack([task.train_ND[task.train_labels_N == c].mean(0) for c in range(task.classes)])
    predicted_M = ((task.test_MD[:, None] - means_CD) ** 2).sum(2).argmin(1)
    return Outcome({0: accuracy(predicted_M, task.test_labels_M, task.test_classes_M)}, task.sizes)
'''


def test_a_probe_is_one_file_and_one_line(raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unic_pipe.stages.report.stage import report

    (tmp_path / "own").mkdir()
    (tmp_path / "own/class_mean.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.delitem(sys.modules, "class_mean", raising=False)
    monkeypatch.setitem(PROBES, "mean", Probe("class_mean:run", "nearest mean"))

    asked = "evaluate.probes=[mean]", "students={}"
    raw.index(*asked)
    assert raw.artefact("evaluations/main", *asked).total == 2
    records = raw.evaluate(*asked)
    assert [(r.encoder, r.definition.probe, r.status) for r in records] == [
        ("lite0", "mean", "done"),
        ("lite1", "mean", "done"),
    ]
    assert min(r.metrics["top1"] for r in records) > 0.3
    assert raw.artefact("evaluations/main", *asked).state == "fresh"
    times = raw.times("evaluations")
    assert raw.evaluate(*asked) == records
    assert raw.times("evaluations") == times
    page, _ = report(raw.inventory(*asked), records)
    assert "earest mean" in page.read_text()
    rows = pq.read_table(page.parent / "results.parquet").to_pylist()
    assert {(r["probe"], r["metric"]) for r in rows} == {("mean", "top1"), ("mean", "per_class")}
