"""One result record as the score that the report shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.evaluations import dataset_digest
from schemas.config import Scalar
from schemas.evaluations import ResultRecord
from stages.report.data import Score
from stages.report.metrics import METRICS

SHOWN_K = 20
"""k of the k-NN table where it was computed: one k for all, because choosing on test scores would flatter."""
CHOSEN = {"c": "C", "validation_top1": "top-1 in validation"}
"""What the list of all results shows of a record's `chosen`."""
_CURVE = re.compile(r"top1_(k)([0-9]+)")
"""Metrics that are one point of a curve: the setting, and its value."""


LINEAR = ("logistic", "sgd")
"""Probes that are each benchmark's linear one: L-BFGS for small sets, SGD for large ones."""


def scores_of(records: Sequence[ResultRecord]) -> tuple[Score, ...]:
    """Every record as a score. The linear probes share one table where each benchmark has only one of them."""
    scores = [score_of(record) for record in records]
    used: dict[str, set[str]] = {}
    for score in scores:
        if score.probe in LINEAR:
            used.setdefault(score.benchmark, set()).add(score.probe)
    if len(set().union(*used.values())) < 2 or any(len(probes) > 1 for probes in used.values()):
        return tuple(scores)
    return tuple(
        replace(s, probe="linear", chosen={"classifier": s.probe, **s.chosen}) if s.probe in LINEAR else s
        for s in scores
    )


def score_of(record: ResultRecord) -> Score:
    """One record as a score: by the first of `METRICS` that it has; a curve by its point at k = 20, or its first."""
    metrics, chosen = dict(record.metrics), dict(record.chosen)
    samples = chosen.get("test_samples")
    details: dict[str, Scalar] = {label: chosen[key] for key, label in CHOSEN.items() if key in chosen}
    curves = curves_of(metrics)
    metric = next((name for name in METRICS if name in metrics), "top1")
    value = metrics.get(metric)
    if value is None and curves:
        setting, points = next(iter(curves.items()))
        at, value = next((p for p in points if p[0] == SHOWN_K), points[0])
        details = {setting: int(at), **{f"top-1 at {setting} {x:g}": y for x, y in points if x != at}, **details}
    failed = record.status == "failed" or value is None
    return Score(
        benchmark=record.benchmark,
        encoder=record.encoder,
        probe=record.definition.probe,
        value=None if failed else value,
        per_class=None if failed else metrics.get("per_class"),
        samples=samples if isinstance(samples, int) else None,
        chosen=details,
        message=record.message,
        digest=record.digest,
        metric=metric,
        curves={} if failed else curves,
        encoder_digest=record.definition.encoder,
        dataset_digest=dataset_digest(record.definition),
    )


def curves_of(metrics: Mapping[str, float]) -> dict[str, tuple[tuple[float, float], ...]]:
    """The curves among a record's metrics, by setting: `top1_k10`, `top1_k20` -> {k: ((10, ...), (20, ...))}."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in metrics.items():
        if match := _CURVE.fullmatch(name):
            found.setdefault(match[1], []).append((float(match[2]), value))
    return {setting: tuple(sorted(points)) for setting, points in found.items()}
