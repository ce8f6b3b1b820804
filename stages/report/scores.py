"""One result record as the score that the report shows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from unic_pipe.pipeline.workspace.results import dataset_digest
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.schemas.probes import PROBES
from unic_pipe.stages.report.data import Score
from unic_pipe.stages.report.metrics import METRICS

SHOWN_K = 20
"""k of the k-NN table where it was computed: one k for all, because choosing on test scores would flatter."""
CHOSEN = {"c": "C", "validation_top1": "top-1 in validation"}
"""What the list of all results shows of a record's `chosen`."""
_CURVE = re.compile(r"top1_(?:(k)([0-9]+)|([a-z]+)_([0-9]+)shot)")
"""Metrics that are one point of a curve: `top1_k10`, `top1_logistic_5shot`."""

LINEAR = [name for name, probe in PROBES.items() if probe.linear]
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
    metric = name = next((m for m in METRICS if m in metrics), "top1")
    if name not in metrics and "k" in curves:
        points = curves["k"]
        at = next((int(k) for k, _ in points if k == SHOWN_K), int(points[0][0]))
        name = f"top1_k{at}"
        details = {"k": at, **{f"top-1 at k {x:g}": y for x, y in points if x != at}, **details}
    value = metrics.get(name)
    failed = record.status == "failed" or value is None
    each = record.classes
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
        spread=None if failed else record.spread.get(name),
        seeds=len(record.per_seed) or 1,
        curves={} if failed else curves,
        classes=tuple(zip(each.classes, each.samples, each.accuracy, strict=True)) if each and not failed else (),
        class_names=each.names if each and not failed else (),
        encoder_digest=record.definition.encoder,
        dataset_digest=dataset_digest(record.definition),
    )


def seeds_of(record: ResultRecord) -> tuple[int, ...]:
    """The seeds of a record, one or several."""
    return record.definition.seeds or (record.definition.seed,)


def curves_of(metrics: Mapping[str, float]) -> dict[str, tuple[tuple[float, float], ...]]:
    """The curves among a record's metrics: `top1_k10`, `top1_k20` -> {k: ((10, ...), (20, ...))}.

    Few-shot curves have the name of their classifier: `top1_logistic_5shot` -> {logistic: ((5, ...),)}.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in metrics.items():
        if match := _CURVE.fullmatch(name):
            setting, place = (match[1] or match[3]), (match[2] or match[4])
            found.setdefault(setting, []).append((float(place), value))
    return {setting: tuple(sorted(points)) for setting, points in found.items()}
