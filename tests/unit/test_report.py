"""The report's page: its numbers are those of the data, and it says what they mean."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_page import ENCODERS, VALUES, Page, curves, hex64, report_data, scores
from rich.console import Console

from unic_pipe.stages.report.charts import Axis, Polygon, radar, styles
from unic_pipe.stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    Origin,
    ReportData,
    Score,
    Skipped,
)
from unic_pipe.stages.report.files import results_table
from unic_pipe.stages.report.metrics import METRICS, log_odds
from unic_pipe.stages.report.render import render, write_report
from unic_pipe.stages.report.summary import headline
from unic_pipe.stages.report.view import Comparison


def test_page_is_well_formed_and_loads_nothing() -> None:
    html = render(report_data())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "script" not in page.tags
    assert [v for k in ("src", "href", "action", "data") for v in page.values(k) if not v.startswith("data:,")] == []
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html) == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for label in page.values("aria-labelledby"):
        assert set(label.split()) <= set(ids)
    assert page.tags.count("svg") > page.tags.count("figure") >= 6
    assert all(scope in ("col", "row", "colgroup") for scope in page.values("scope"))


def test_scores_in_the_table_equal_the_data() -> None:
    page = Page(render(report_data()))
    table = page.tables[0]
    names = table[1]
    assert names == ["Benchmark", "main", "lite0", "lite1", "main-random"]
    for row in table[2:5]:
        bench = next(b for b in VALUES if row[0].startswith(b))
        for name, cell in zip(names[1:], row[1:], strict=True):
            assert cell.startswith(f"{100 * VALUES[bench][name]:.1f}")
    assert table[2][1] == "93.9 ±1.3−1.1 98.8 %"
    assert table[3][1] == "89.2 ±1.6+0.8 101.0 %"
    assert "synthetic" in table[4][0]
    assert "360 test images" in table[2][0]
    assert "±" not in table[2][0]
    assert table[5][:3] == ["Mean", "93.2−0.9 99.1 %", "94.1"]


def test_mean_log_odds_are_those_of_the_formula_and_clipped() -> None:
    page = Page(render(report_data()))
    expected = sum(math.log(row["main"] / (1 - row["main"])) for row in VALUES.values()) / 3
    assert page.tables[0][6][:2] == ["Mean log-odds", f"{expected:.2f}"]
    assert log_odds(1.0, 360) == pytest.approx(math.log(719)), "half a test image away from 1"
    assert log_odds(0.0, 360) == pytest.approx(-math.log(719))
    assert math.isfinite(log_odds(1.0, None))


def test_student_is_compared_with_every_teacher_and_with_the_best() -> None:
    page = Page(render(report_data()))
    table = next(t for t in page.tables if "best teacher" in t[0])
    assert table[0] == ["Benchmark", "best teacher", "lite0", "lite1"]
    assert table[1] == ["digits", "−1.198.8 %lite0", "−1.198.8 %", "+0.8100.9 %"]
    assert table[3] == ["shapes", "−2.597.5 %lite0", "−2.597.5 %", "−2.098.0 %"]
    assert table[4][:2] == ["Mean", "−0.999.1 %"]


def test_spread_over_seeds_stands_beside_the_score_and_the_difference() -> None:
    data = report_data()
    data = replace(data, scores=tuple(replace(s, spread=0.003, seeds=5) for s in data.scores))
    page = Page(render(data))
    assert page.tables[0][2][1] == "93.9 ±0.3−1.1 98.8 %"
    versus = next(t for t in page.tables if "best teacher" in t[0])
    assert versus[1][2] == "−1.1 ±0.498.8 %", "two independent spreads add as squares"
    assert "seeds = 5" in page.text


def axis_data() -> ReportData:
    """Four benchmarks on three axes and one without; the fourth is a depth error, where lower is better."""
    values = {**VALUES, "nyud": {"main": 0.50, "lite0": 0.40, "lite1": 0.60, "main-random": 0.90}}
    found = [replace(s, metric="rmse") if s.benchmark == "nyud" else s for s in scores(values)]
    axes = {"digits": "IN-1K", "shifted": "domain shift", "shapes": "", "nyud": "depth"}
    benchmarks = tuple(BenchmarkEntry(name, axis=axis) for name, axis in axes.items())
    return replace(report_data(), benchmarks=benchmarks, scores=tuple(found))


def test_three_axes_make_a_radar_and_fewer_only_dots() -> None:
    html = render(axis_data())
    assert 'aria-labelledby="radar-t' in html
    assert 'aria-labelledby="dots-t' in html
    radar_said = re.search(r'id="radar-d">([^<]*)<', html)
    assert radar_said is not None
    assert "main: IN-1K 98.8, domain shift 101.0, depth 80.0" in radar_said[1], "0.40 m is 80 % of 0.50 m"
    assert "Without an axis, so only below: shapes." in html
    for data in (report_data(), replace(report_data(), benchmarks=report_data().benchmarks[:1])):
        page = render(data)
        assert 'aria-labelledby="dots-t' in page
        assert "radar-t" not in page


def test_rows_are_grouped_by_axis_and_other_measures_are_not_averaged() -> None:
    page = Page(render(axis_data()))
    first = [row[0] for row in page.tables[0][2:]]
    assert [name for name in first if name in ("IN-1K", "domain shift", "depth", "other")] == [
        "IN-1K", "domain shift", "depth", "other",
    ]  # fmt: skip
    depth = next(row for row in page.tables[0] if row[0].startswith("nyud"))
    assert "RMSE in m, lower is better" in depth[0]
    assert depth[1:4] == ["0.500+0.100 80.0 %", "0.400", "0.600"]
    mean = next(row for row in page.tables[0] if row[0].startswith("Mean"))
    assert mean[:2] == ["Meanof 3 accuracies", "93.2−0.9 99.1 %"]
    html = render(axis_data())
    assert '<span class="down">+0.100</span>' in html, "more metres are worse"


def test_classes_with_the_largest_differences_are_shown() -> None:
    def with_classes(score: Score) -> Score:
        student = score.encoder == "main"
        names = tuple(f"kind {n}" for n in range(20))
        each = tuple((n, 36, n / 100 if student else 0.1) for n in range(20))
        return replace(score, classes=each, class_names=names)

    data = replace(report_data(), scores=tuple(map(with_classes, report_data().scores)))
    page = Page(render(data))
    table = next(t for t in page.tables if t[0][0] == "Class")
    assert table[0] == ["Class", "Test images", "main", "lite0", "Difference"]
    assert [row[0] for row in table[1:]] == [f"kind {n}" for n in (0, 1, 2, 3, 4, 15, 16, 17, 18, 19)]
    assert table[1] == ["kind 0", "36", "0.0", "10.0", "−10.0"]
    assert "digits: 10 of 20 classes" in page.text


def test_skipped_is_listed_with_its_reason() -> None:
    data = replace(report_data(), skipped=(Skipped("ade20k", "no <files>"), Skipped("students/big", "not finished")))
    assert "Skippedade20k: no <files>students/big: not finished" in Page(render(data)).text.replace("\n", "")


def test_knn_is_drawn_over_k_where_there_are_three_values() -> None:
    def with_curve(ks: tuple[int, ...]) -> str:
        points = tuple((k, 0.9 - k / 1000) for k in ks)
        data = report_data()
        found = tuple(replace(s, curves={"k": points}) if s.probe == "knn" else s for s in data.scores)
        return render(replace(data, scores=found))

    assert "k-NN by k" in with_curve((10, 20, 100))
    assert "main 89.0 at 10, 88.0 at 20, 80.0 at 100" in with_curve((10, 20, 100))
    assert "k-NN by k" not in with_curve((10, 20))


def test_best_of_each_row_is_bold() -> None:
    html = render(report_data())
    first = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r"<strong>([0-9.]+)</strong>", first) == ["95.0", "89.2", "99.0"]


def test_headline_is_computed() -> None:
    assert headline(report_data()) == (
        "Student `main` matches or beats the best teacher on 2 of 3 benchmarks (mean −0.9 points) "
        "and gains 15.4 points over random initialisation."
    )


@pytest.mark.parametrize(
    ("value", "best", "samples", "reached"),
    [
        (0.995, 1.000, 10_000, True),  # half a point below
        (0.994, 1.000, 10_000, False),
        (0.889, 0.900, 400, True),  # one binomial standard error of 400 images at .9 is 1.5 points
        (0.884, 0.900, 400, False),
        (0.889, 0.900, None, False),  # a test set of unknown size allows nothing
        (0.901, 0.900, None, True),
    ],
)
def test_matching_a_teacher_allows_the_error_of_the_test_set(
    value: float, best: float, samples: int | None, reached: bool
) -> None:
    assert Comparison("digits", value, best, "lite0", samples=samples).reached is reached
    assert not Comparison("depth", 0.51, 0.50, "lite0", METRICS["rmse"], samples=samples).reached, (
        "more metres are worse"
    )


def test_headline_says_when_no_single_teacher_is_as_good_everywhere() -> None:
    values = {
        "digits": {"main": 0.99, "lite0": 0.99, "lite1": 0.4},
        "shapes": {"main": 0.9, "lite0": 0.3, "lite1": 0.9},
    }
    found = tuple(Score(b, e, "logistic", v, samples=400) for b, row in values.items() for e, v in row.items())
    data = replace(report_data(), benchmarks=tuple(map(BenchmarkEntry, values)), scores=found)
    assert headline(data).startswith(
        "Student `main` matches or beats the best teacher on all 2 benchmarks (mean ±0.0 points) and is 29.5 points above"
        " every single teacher on average"
    )


@pytest.mark.parametrize(
    ("benchmarks", "encoders", "said"),
    [
        (3, ("lite0", "lite1"), "No student has been evaluated yet; the best teacher is `lite0` on 3 of 3 benchmarks."),
        (1, ("main", "lite0"), "Student `main` scores 93.9 % on `digits`, matching the best teacher `lite0` (1.1 points below, "),
        (3, ("main",), "Student `main` scores 93.2 % on average over 3 benchmarks; no teacher has a result to compare"),
        (1, (), "No benchmark has a result yet."),
    ],
)  # fmt: skip
def test_headline_without_some_of_the_parts(benchmarks: int, encoders: tuple[str, ...], said: str) -> None:
    data = report_data()
    kept = data.benchmarks[:benchmarks]
    data = replace(
        data,
        benchmarks=kept,
        encoders=tuple(e for e in ENCODERS if e.name in encoders),
        scores=tuple(s for s in data.scores if s.encoder in encoders and s.benchmark in {b.name for b in kept}),
    )
    assert headline(data).startswith(said)
    Page(render(data))


def test_headline_speaks_of_the_best_student_and_the_page_of_all() -> None:
    values = {b: {**row, "small": row["lite0"] + 0.01} for b, row in VALUES.items()}
    data = replace(report_data(), encoders=(EncoderEntry("small", "student"), *ENCODERS), scores=scores(values))
    assert headline(data).startswith("Best of the students, `small` matches or beats the best teacher on all 3 bench")
    assert "main reaches the best teacher on 2 of 3 (mean −0.9 points)" in Page(render(data)).text


def test_equal_at_the_shown_precision_counts_as_matched() -> None:
    values = {b: {"main": 0.9, "lite0": 0.9004} for b in VALUES}
    data = replace(report_data(), encoders=ENCODERS[:2], scores=scores(values))
    assert "on all 3 benchmarks (mean ±0.0 points)" in headline(data)


def test_failed_probe_is_listed_with_its_reason_and_breaks_nothing() -> None:
    data = report_data()
    failed = Score("digits", "lite0", "logistic", None, message="no labels in <digits>")
    data = replace(data, scores=(failed, *(s for s in data.scores if (s.benchmark, s.encoder) != ("digits", "lite0"))))
    page = Page(render(data))
    assert page.tables[0][2][2] == "failed"
    assert page.tables[0][5][2] == "–"
    assert "digits, lite0, linear probe: no labels in <digits>" in page.text
    assert page.tables[0][2][1].startswith("93.9 ±1.3+0.8"), "compared with the best teacher that has a result"


def test_remarks_of_finished_results_are_shown_once() -> None:
    data = report_data()
    data = replace(data, scores=tuple(replace(s, message="Not converged.") for s in data.scores))
    page = Page(render(data))
    assert page.text.count("Not converged.") == 1
    assert "digits (main, lite0, lite1, main-random)" in page.text


@pytest.mark.parametrize("name", ['"><script>alert(1)</script>', "'&`{{ 7*7 }}`<b>", "</style></svg>]]>"])
def test_hostile_names_are_text(name: str) -> None:
    teacher = f"t{name}"
    row = {name: 0.5, teacher: 0.6}
    data = ReportData(
        title=name,
        benchmarks=tuple(BenchmarkEntry(f"{i}{name}", name) for i in range(3)),
        encoders=(EncoderEntry(name, "student"), EncoderEntry(teacher, "teacher")),
        scores=(*scores({f"{i}{name}": row for i in range(3)}), Score(f"0{name}", name, "knn", None, message=name)),
        training=(curves(name, (teacher,)),),
        origins=(Origin(name, name, hex64("x")),),
        protocol=name,
        commands=(name,),
    )
    page = Page(render(data))
    clean = Page(render(report_data()))
    assert set(page.tags) <= {*clean.tags, "div", "b", "pre", "ul", "li"}
    assert "script" not in page.tags
    assert name in page.text
    assert not {key for _, key, _ in page.attributes if key.startswith("on")}


def test_digests_show_eight_digits_and_hold_all() -> None:
    html = render(report_data())
    digest = hex64("s")
    assert f'title="{digest}"' in html
    assert f">{digest[:8]}<span" in html


def test_twelve_benchmarks_and_six_teachers() -> None:
    names = [f"benchmark-with-quite-a-long-name-{i}" for i in range(12)]
    teachers = [f"teacher-{i}" for i in range(6)]
    values = {b: {"main": 0.8, **{t: 0.7 + 0.01 * i for i, t in enumerate(teachers)}} for b in names}
    encoders = (EncoderEntry("main", "student"), *(EncoderEntry(t, "teacher") for t in teachers))
    data = ReportData("big", tuple(BenchmarkEntry(b) for b in names), encoders, scores(values))
    page = Page(render(data))
    assert len(page.tables[0]) == 2 + 12 + 2
    looks = [styles(encoders)[e.name] for e in encoders]
    assert len({look.colour for look in looks}) == 7
    assert len({(look.dash, look.marker) for look in looks}) == 7, "distinguishable without colour"


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    first = write_report(tmp_path / "a", report_data()).read_bytes()
    assert write_report(tmp_path / "b", report_data()).read_bytes() == first
    assert (tmp_path / "a" / "report.html").read_bytes() == first


def test_sizes_and_measured_speeds_stand_below_the_names() -> None:
    known = tuple(replace(e, parameters=5_700_000, speed=33.333 if e.role != "teacher" else 0.0) for e in ENCODERS)
    text = " ".join(Page(render(replace(report_data(), encoders=known, speed_device="cpu"))).text.split())
    assert text.count("5.7 M, 33.3 images/s") >= 2
    assert "forward passes on one core of a CPU, as unic-pipe plan measured them" in text
    assert "images/s" not in Page(render(report_data())).text


def test_terminal_table_has_the_same_numbers() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(results_table(report_data()))
    shown = out.getvalue()
    assert re.search(r"digits +│ 93\.9 │ +95\.0 │ +93\.1 │ +80\.3", shown)
    assert "−1.1" in shown
    assert "15.4 points over random" in " ".join(shown.split())
    Console(file=io.StringIO()).print(results_table(ReportData("[bold]nothing[/nonsense]")))


def test_radar_leaves_out_a_baseline_far_below_instead_of_squeezing_the_rest() -> None:
    looks = styles(ENCODERS)
    axes = [Axis(b, "") for b in VALUES]
    near = Polygon("main", "student", (98.0, 101.0, 99.0), looks["main"])
    far = Polygon("main-random", "baseline", (5.0, 30.0, 10.0), looks["main-random"])
    plot = radar(axes, [near, far])
    assert plot.left_out == ("main-random",)
    assert 90 <= plot.centre < 98
    gap = Polygon("lite0", "teacher", (100.0, None, 100.0), looks["lite0"])
    assert "no result" in radar(axes, [near, gap]).picture


def test_balance_of_teachers_stands_where_training_ended() -> None:
    told = replace(curves(), curves={k: v for k, v in curves().curves.items() if "gradient" not in k})
    page = Page(render(replace(report_data(), training=(curves(), replace(told, name="older")))))
    table = next(t for t in page.tables if "Share of gradient" in t[0])
    assert table[0][-4:] == ["Images kept", "CLS spread", "Patch spread", "Share of gradient"]
    assert table[1][-4:] == ["–"] * 4
    assert table[2][-4:] == ["75 %", "1.25", "–", "50 %"]
    assert table[5][-4:] == ["75 %", "1.25", "–", "–"]
    assert "Share of the gradient, main" in page.text
    assert "Share of the gradient, older" not in page.text
