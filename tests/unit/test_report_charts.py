"""Parts of charts: ticks, thinned curves, shortened names."""

from __future__ import annotations

import pytest

from unic_pipe.pipeline.process.svg import fit, nice_ticks, shorten, tick_labels
from unic_pipe.stages.report.charts import thin
from unic_pipe.stages.report.data import Series


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.301, 0.309), (-3, 17), (99.2, 101.1), (5, 5), (0, 2.5e-4), (0, 2e-3), (0, 118), (0, 0)]
)
def test_ticks_are_round_enclose_the_range_and_have_distinct_labels(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 4 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 7


def test_thinning_keeps_the_mean_and_the_range() -> None:
    values = tuple(float(i % 7) for i in range(1003))
    points = thin(Series(tuple(map(float, range(1003))), values), limit=100)
    assert len(points) == 100
    assert {(lo, hi) for _, _, lo, hi in points} == {(0.0, 6.0)}
    assert points[0][0] < points[1][0]
    assert thin(Series((1.0,), (2.0,))) == [(1.0, 2.0, 2.0, 2.0)]
    assert thin(Series((), ())) == []


def test_names_are_shortened_in_the_middle() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("imagenet-sketch-v2", 10) == "imagen…-v2"
    assert len(shorten("x" * 99, 12)) == 12
    assert fit("imagenet-1k", 100, 13) == "imagenet-1k"
    assert len(fit("illicit-little-tilt", 100, 13)) > len(fit("MMMMMMMMMMMMMMMMMMM", 100, 13)) >= 4
