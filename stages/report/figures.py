"""From report data to charts: which series each one shows, in which style, with which legend and remark."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from unic_pipe.stages.report.charts import Axis, Line, Polygon, Style, panel, radar, styles, swatch
from unic_pipe.stages.report.data import BenchmarkEntry, EncoderEntry, ReportData, StudentCurves
from unic_pipe.stages.report.dots import dots
from unic_pipe.stages.report.summary import main_view, plural
from unic_pipe.stages.report.view import Comparison, ProbeView, average

VALIDATION_DASH = "5 3"


@dataclass(frozen=True)
class Chart:
    """A chart with its heading, its legend (sample and name) and a remark."""

    title: str
    picture: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    remark: str = ""


RADAR_AXES = 3
"""With fewer groups of benchmarks a radar has no shape to read: the dots alone say more."""


def relative_charts(data: ReportData) -> list[Chart]:
    """A radar over groups of benchmarks where there are enough, and dots for every benchmark.

    Empty when there is nothing to compare with a teacher.
    """
    view = main_view(data)
    best = [(b, found) for b in view.benchmarks if (found := view.best_teacher(b.name)) and found[1] > 0]
    looks = looks_of(data)
    shown, spreads = [], []
    for encoder in data.ordered():
        against = [view.comparison(bench.name, encoder.name, found[0]) for bench, found in best]
        relative = tuple(None if c is None or c.ratio is None else 100 * c.ratio for c in against)
        if any(v is not None for v in relative):
            shown.append(Polygon(encoder.name, encoder.role, relative, looks[encoder.name]))
            spreads.append([_relative_spread(view, c, encoder.name) for c in against])
    if len(shown) < 2:
        return []
    legend = tuple((swatch(p.style), p.name) for p in shown)
    axes = [Axis(b.name, _best_note(view, b.name, *found)) for b, found in best]
    note = "Every benchmark, on a scale where its best teacher is 100: the solid line. The bar of a student is its"
    note += " difference to that teacher."
    if any(s for row in spreads for s in row):
        note += " Whiskers: one standard deviation over seeds."
    every = Chart("By benchmark", dots(axes, shown, spreads), legend, note)
    overview = _radar_chart([b for b, _ in best], shown)
    return [every] if overview is None else [overview, every]


def _best_note(view: ProbeView, benchmark: str, teacher: str, value: float) -> str:
    metric = view.metric(benchmark)
    return f"100 = {teacher}, {metric.show(value)} {metric.unit}"


def _relative_spread(view: ProbeView, compared: Comparison | None, encoder: str) -> float | None:
    """The encoder's own standard deviation, in per cent of the best teacher's score."""
    spread = None if compared is None else view.scores[compared.benchmark, encoder].spread
    return None if compared is None or not spread else 100 * spread / compared.best


def _radar_chart(benchmarks: Sequence[BenchmarkEntry], shown: Sequence[Polygon]) -> Chart | None:
    """A radar whose axes are groups of benchmarks: the mean of the relative scores in each."""
    groups = list(dict.fromkeys(b.axis for b in benchmarks if b.axis))
    if len(groups) < RADAR_AXES:
        return None
    places = {axis: [i for i, b in enumerate(benchmarks) if b.axis == axis] for axis in groups}

    def mean(polygon: Polygon, axis: str) -> float | None:
        found = [v for i in places[axis] if (v := polygon.values[i]) is not None]
        return average(found) if len(found) == len(places[axis]) else None

    polygons = [replace(p, values=tuple(mean(p, axis) for axis in groups)) for p in shown]
    plot = radar([Axis(a, plural(len(places[a]), "benchmark")) for a in groups], polygons)
    legend = tuple((swatch(p.style), p.name) for p in polygons if p.name not in plot.left_out)
    note = (
        "Mean over the benchmarks of each axis of the score relative to the best teacher of that benchmark (100), so a"
    )
    note += f" teacher reaches 100 only where it is the best everywhere. The centre stands for {plot.centre:g}."
    if plot.cut:
        note += f" Lower in places, and drawn at the centre there: {', '.join(plot.cut)}."
    if plot.left_out:
        note += f" Lower everywhere, and not drawn: {', '.join(plot.left_out)}."
    alone = [b.name for b in benchmarks if not b.axis]
    if alone:
        note += f" Without an axis, so only below: {', '.join(alone)}."
    return Chart("By axis", plot.picture, legend, note)


def looks_of(data: ReportData) -> dict[str, Style]:
    """Styles of all encoders, and of students and teachers that appear in training only."""
    known = {e.name for e in data.encoders}
    students = [s.name for s in data.training if s.name not in known]
    teachers = dict.fromkeys(t for s in data.training for t in s.teachers if t not in known)
    entries = [EncoderEntry(n, "student") for n in students] + [EncoderEntry(n, "teacher") for n in teachers]
    return styles([*data.ordered(), *entries])


def curve_legend(data: ReportData) -> tuple[tuple[Markup, str], ...]:
    """What the lines of the loss panels mean: one entry per student and curve kind."""
    looks = looks_of(data)
    entries = []
    for student in data.training:
        look = looks[student.name]
        entries.append((swatch(_plain(look)), f"{student.name}, training"))
        if student.curve("val/loss").values:
            entries.append((swatch(_validation(look)), f"{student.name}, validation"))
    return tuple(entries)


def _plain(look: Style) -> Style:
    return replace(look, dash="", marker="none", width=1.8)


def _validation(look: Style) -> Style:
    return replace(look, dash=VALIDATION_DASH, width=1.8)


def training_panels(data: ReportData) -> list[Chart]:
    """Small panels over epochs: total loss, one per teacher, images kept and shares of the gradient per student, rate."""
    students = [s for s in data.training if s.curves]
    if not students:
        return []
    looks = looks_of(data)
    end = max((c.epochs[-1] for s in students for c in s.curves.values() if c.epochs), default=1.0) or 1.0
    teachers = list(dict.fromkeys(t for s in students for t in s.teachers))

    def losses(column: str, title: str) -> Chart | None:
        lines = []
        for student in students:
            look = looks[student.name]
            train, val = student.curve(column), student.curve(f"val/{column}")
            lines.append(Line(f"{student.name}, training", train, _plain(look), band=True))
            lines.append(Line(f"{student.name}, validation", val, _validation(look), marks=True))
        return _panel(title, lines, end)

    charts = [losses("loss", "Total loss"), *(losses(f"{t}/loss", f"Loss of teacher {t}") for t in teachers)]
    for title, column in SHARES.items():
        charts += [_shares(title, column, student, looks, end, len(students) > 1) for student in students]
    rates = [Line(s.name, s.curve("lr"), _plain(looks[s.name])) for s in students]
    charts.append(_panel("Learning rate", rates, end))
    return [chart for chart in charts if chart is not None]


SHARES = {"Images that keep each teacher": "kept", "Share of the gradient": "gradient"}
"""Panels of fractions between 0 and 1: title, and column of every teacher."""


def _shares(
    title: str, column: str, student: StudentCurves, looks: dict[str, Style], end: float, several: bool
) -> Chart | None:
    looks = {t: replace(looks[t], dash="", width=1.6) for t in student.teachers}
    lines = [Line(t, student.curve(f"{t}/{column}"), looks[t], marks=True) for t in student.teachers]
    title = f"{title}, {student.name}" if several else title
    chart = _panel(title, lines, end, (0.0, 1.0))
    return chart and replace(chart, legend=tuple((swatch(looks[t]), t) for t in student.teachers))


def _panel(title: str, lines: list[Line], end: float, limits: tuple[float, float] | None = None) -> Chart | None:
    shown = [line for line in lines if line.series.values]
    if not shown:
        return None
    return Chart(title, panel(_identity(title), title, shown, end, limits))


def _identity(title: str) -> str:
    """An id that is unique per title and safe in HTML, whatever the names in it."""
    return "p" + "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}" for c in title)
