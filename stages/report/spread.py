"""Scores of students that differ in their training seed alone: their means, standard errors and standard deviations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from unic_pipe.pipeline.workspace.seeds import SeedGroup
from unic_pipe.stages.report.data import ReportData
from unic_pipe.stages.report.metrics import METRICS, Metric
from unic_pipe.stages.report.summary import main_view
from unic_pipe.stages.report.tables import NONE, Cell, Column, Row, ScoreTable, probe_title
from unic_pipe.stages.report.view import ProbeView


@dataclass(frozen=True)
class Spread:
    """n ≥ 2 values that differ by their seed, in units of a stored score."""

    mean: float
    deviation: float
    """Sample standard deviation (n - 1)."""
    count: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.count)


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """The spread of the values that are there; None of fewer than two."""
    found = [value for value in values if value is not None]
    return Spread(statistics.fmean(found), statistics.stdev(found), len(found)) if len(found) > 1 else None


def seed_tables(data: ReportData) -> list[ScoreTable]:
    """For every probe, benchmarks x students of several seeds: mean and standard error."""
    return [
        ScoreTable(
            f"{probe_title(view)}, mean ± standard error over training seeds",
            tuple(Column(group.name, "student") for group in data.seed_groups),
            (("", tuple(_row(view, bench.name) for bench in view.benchmarks)),),
            _mean_row(view) if len(view.accuracies) > 1 else (),
            (("Students of several seeds", len(data.seed_groups)),),
            mixed=any(view.metric(bench.name) is not METRICS["top1"] for bench in view.benchmarks),
        )
        for view in (ProbeView(data, probe) for probe in data.probes)
        if data.seed_groups
    ]


def seed_sentences(data: ReportData) -> list[str]:
    """A sentence for every student of several seeds, by the main probe. Names stand in backticks."""
    view = main_view(data)
    return [sentence for group in data.seed_groups if (sentence := _sentence(view, group))]


def _sentence(view: ProbeView, group: SeedGroup) -> str:
    parts = []
    for bench in view.benchmarks:
        found, metric = _spread(view, group, bench.name), view.metric(bench.name)
        if found is not None:
            numbers = f"{metric.show(found.mean)} ± {metric.show(found.error)}"
            parts.append(f"{numbers} on `{bench.name}` (n = {found.count}, std {metric.show(found.deviation)})")
    if not parts:
        return ""
    order = "; they share order and views, whose part this spread leaves out" if group.same_order else ""
    return f"Over training seeds, mean ± standard error, `{group.name}` scores {', '.join(parts)}{order}."


def _spread(view: ProbeView, group: SeedGroup, benchmark: str) -> Spread | None:
    return spread_of([view.value(benchmark, name) for name in group.members])


def _row(view: ProbeView, benchmark: str) -> Row:
    metric = view.metric(benchmark)
    cells = tuple(_cell(_spread(view, group, benchmark), metric) for group in view.data.seed_groups)
    return Row(benchmark, cells, detail="" if metric is METRICS["top1"] else f"{metric.title} in {metric.unit}")


def _mean_row(view: ProbeView) -> tuple[Row, ...]:
    """Over seeds, of each one's mean over benchmarks: benchmarks go up and down together."""
    spreads = [spread_of([view.mean(name) for name in group.members]) for group in view.data.seed_groups]
    return (Row("Mean", tuple(_cell(spread, METRICS["top1"]) for spread in spreads)),)


def _cell(found: Spread | None, metric: Metric) -> Cell:
    if found is None:
        return Cell(NONE, hover="fewer than two seeds have a result")
    hover = f"standard deviation {metric.show(found.deviation)}, n = {found.count}"
    return Cell(metric.show(found.mean), hover=hover, spread=f"±{metric.show(found.error)}")
