"""Writes the report: tables and charts laid out in one HTML file that needs nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.storage import LocalStore
from schemas.base import PROGRAM_VERSION, short
from stages.report import tables
from stages.report.data import ReportData
from stages.report.figures import curve_legend, relative_chart, training_panels
from stages.report.summary import (
    PROBE_NAMES,
    average,
    best_student,
    headline,
    main_view,
    percent,
    plural,
    signed,
)  # fmt: skip

FILE = "report.html"


@dataclass(frozen=True)
class Tile:
    """One large number under the headline."""

    value: str
    unit: str
    label: str


def write_report(folder: Path, data: ReportData) -> Path:
    """Write `report.html` into a folder (atomically, replacing an older one) and return its path."""
    text = render(data).encode()
    path = folder / FILE
    if not path.is_file() or path.read_bytes() != text:
        LocalStore(folder).put(FILE, text)
    return path


def render(data: ReportData) -> str:
    """The report as HTML; equal data give equal text."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = code_spans
    environment.filters["short"] = short
    view = main_view(data)
    student = best_student(view)
    return environment.get_template("report.html.j2").render(
        data=data,
        css=Markup((here / "report.css").read_text(encoding="utf-8")),
        version=PROGRAM_VERSION,
        headline=headline(data),
        others=_other_students(data),
        tiles=_tiles(data),
        lead=student.name if student else "",
        score_tables=[tables.score_table(data, probe) for probe in data.probes],
        probe_names=PROBE_NAMES,
        failures=tables.failures(data),
        remarks=tables.remarks(data),
        chosen=tables.chosen_text,
        percent=percent,
        relative=relative_chart(data),
        panels=training_panels(data),
        curve_legend=curve_legend(data),
        loss_columns=tables.LOSS_COLUMNS,
        losses=tables.loss_rows(data.training),
        feature_columns=tables.FEATURE_COLUMNS,
        feature_cells=tables.feature_cells,
        feature_total=tables.size_text(sum(f.size for f in data.features if f.training)),
    )


def code_spans(sentence: str) -> Markup:
    """Text with `names` in backticks as HTML with <code>."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _tiles(data: ReportData) -> list[Tile]:
    view = main_view(data)
    student = best_student(view)
    if student is None:
        return []
    found = []
    values = [v for b in data.benchmarks if (v := view.value(b.name, student.name)) is not None]
    probe = PROBE_NAMES.get(view.probe, view.probe)
    over = f"mean over {plural(len(values), 'benchmark')}" if len(values) > 1 else "one benchmark"
    found.append(Tile(percent(average(values) or 0.0), "%", f"top-1 of `{student.name}`, {probe}, {over}"))
    compared, gains = view.comparisons(student.name), view.gains(student)
    if compared:
        ratios = average(c.ratio for c in compared if c.ratio is not None)
        against = "" if ratios is None else f" ({100 * ratios:.1f} % of it)"
        points = signed(average(c.points for c in compared) or 0.0)
        found.append(Tile(points, "points", f"against the best teacher of each benchmark{against}"))
    if gains:
        points = signed(average(gains) or 0.0)
        found.append(Tile(points, "points", "over the same architecture at random initialisation"))
    return found


def _other_students(data: ReportData) -> list[str]:
    view = main_view(data)
    lead = best_student(view)
    lines = []
    for student in data.named("student"):
        compared = view.comparisons(student.name)
        if lead is None or student.name == lead.name or not compared:
            continue
        reached, mean = sum(c.reached for c in compared), signed(average(c.points for c in compared) or 0.0)
        lines.append(f"`{student.name}` reaches the best teacher on {reached} of {len(compared)} (mean {mean} points)")
    return lines
