"""From report data to charts: which series each one shows, in which style, with which legend and remark."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup

from stages.report.charts import Axis, Line, Polygon, bars, panel, radar
from stages.report.data import EncoderEntry, ReportData, StudentCurves
from stages.report.styles import Style, styles, swatch
from stages.report.summary import main_view

VALIDATION_DASH = "5 3"


@dataclass(frozen=True)
class Chart:
    """A chart with its heading, its legend (sample and name) and a remark."""

    title: str
    picture: Markup
    legend: tuple[tuple[Markup, str], ...] = ()
    remark: str = ""


def relative_chart(data: ReportData) -> Chart | None:
    """Radar, or bars below three benchmarks; None when there is nothing to compare with a teacher."""
    view = main_view(data)
    best = [(b, found) for b in data.benchmarks if (found := view.best_teacher(b.name)) and found[1] > 0]
    axes = [Axis(bench.name, 100 * found[1]) for bench, found in best]
    looks = _looks(data)
    polygons = []
    for encoder in data.ordered():
        raw = [view.value(bench.name, encoder.name) for bench, _ in best]
        relative = tuple(None if v is None else 100 * v / found[1] for v, (_, found) in zip(raw, best, strict=True))
        if any(v is not None for v in relative):
            polygons.append(Polygon(encoder.name, encoder.role, relative, looks[encoder.name]))
    if not axes or len(polygons) < 2:
        return None
    if len(axes) < 3:
        return Chart("", bars(axes, polygons), (), "The best teacher of each benchmark is 100: the dark line.")
    plot = radar(axes, polygons)
    legend = tuple((swatch(p.style), p.name) for p in polygons if p.name not in plot.left_out)
    note = "The best teacher of each benchmark is 100; the number under a name is its top-1 in per cent."
    note += f" The centre stands for {plot.centre:g}."
    if plot.cut:
        note += f" Lower in places, and drawn at the centre there: {', '.join(plot.cut)}."
    if plot.left_out:
        note += f" Lower everywhere, and not drawn: {', '.join(plot.left_out)}."
    return Chart("", plot.picture, legend, note)


def _looks(data: ReportData) -> dict[str, Style]:
    """Styles of all encoders, and of students and teachers that appear in training only."""
    known = {e.name for e in data.encoders}
    students = [s.name for s in data.training if s.name not in known]
    teachers = dict.fromkeys(t for s in data.training for t in s.teachers if t not in known)
    entries = [EncoderEntry(n, "student") for n in students] + [EncoderEntry(n, "teacher") for n in teachers]
    return styles([*data.ordered(), *entries])


def curve_legend(data: ReportData) -> tuple[tuple[Markup, str], ...]:
    """What the lines of the loss panels mean: one entry per student and curve kind."""
    looks = _looks(data)
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
    """Small panels over epochs: total loss, one per teacher, images kept per student, learning rate."""
    students = [s for s in data.training if s.curves]
    if not students:
        return []
    looks = _looks(data)
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
    charts += [_kept(student, looks, end, len(students) > 1) for student in students]
    rates = [Line(s.name, s.curve("lr"), _plain(looks[s.name])) for s in students]
    charts.append(_panel("Learning rate", rates, end))
    return [chart for chart in charts if chart is not None]


def _kept(student: StudentCurves, looks: dict[str, Style], end: float, several: bool) -> Chart | None:
    looks = {t: replace(looks[t], dash="", width=1.6) for t in student.teachers}
    lines = [Line(t, student.curve(f"{t}/kept"), looks[t], marks=True) for t in student.teachers]
    title = f"Images that keep each teacher, {student.name}" if several else "Images that keep each teacher"
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
