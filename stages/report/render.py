"""Writes the report: tables and charts laid out in one HTML file that needs nothing else."""

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.base import PROGRAM_VERSION, short
from unic_pipe.stages.report import details, tables
from unic_pipe.stages.report.data import ReportData
from unic_pipe.stages.report.details import class_tables
from unic_pipe.stages.report.figures import curve_legend, relative_charts, training_panels
from unic_pipe.stages.report.metrics import METRICS, signed
from unic_pipe.stages.report.spread import seed_sentences, seed_tables
from unic_pipe.stages.report.summary import (
    best_student,
    headline,
    main_view,
    mean_points,
    mean_ratio,
    mean_text,
    percent,
    plural,
    probe_name,
)  # fmt: skip
from unic_pipe.stages.report.sweeps import sweep_panels
from unic_pipe.stages.report.tables import versus_tables
from unic_pipe.stages.report.trainings import COLUMNS as FACT_COLUMNS
from unic_pipe.stages.report.view import average

FILE = "report.html"


@dataclass(frozen=True)
class Tile:
    """One large number under the headline."""

    value: str
    unit: str
    label: str


def write_report(folder: Path, data: ReportData) -> Path:
    """Write `report.html` into a folder (atomically, replacing an older one) and return its path."""
    return put_text(folder, FILE, render(data))


def put_text(folder: Path, name: str, text: str) -> Path:
    """Write a text file into a folder, atomically; an equal one is left alone. Returns its path."""
    path, raw = folder / name, text.encode()
    if not path.is_file() or path.read_bytes() != raw:
        LocalStore(folder).put(name, raw)
    return path


def render(data: ReportData) -> str:
    """The report as HTML; equal data give equal text."""
    view = main_view(data)
    student = best_student(view)
    return fill(
        "report.html.j2",
        data=data,
        headline=headline(data),
        others=_other_students(data),
        spreads=seed_sentences(data),
        tiles=_tiles(data),
        lead=student.name if student else "",
        score_tables=[tables.score_table(data, probe) for probe in data.probes] + seed_tables(data),
        versus=versus_tables(view),
        classes=class_tables(view, student.name) if student else [],
        versus_probe=tables.probe_title(view),
        probe_name=probe_name,
        metrics=METRICS,
        failures=tables.failures(data),
        remarks=tables.remarks(data),
        chosen=tables.chosen_text,
        relative=relative_charts(data),
        sweeps=sweep_panels(data),
        panels=training_panels(data),
        fact_columns=FACT_COLUMNS,
        curve_legend=curve_legend(data),
        loss_columns=details.LOSS_COLUMNS + details.BALANCE_COLUMNS,
        losses=details.loss_rows(data.training),
        feature_columns=details.FEATURE_COLUMNS,
        feature_cells=details.feature_cells,
        feature_total=human_bytes(sum(f.size for f in data.features if f.training)),
    )


def fill(template: str, **values: object) -> str:
    """A template of this folder as HTML, in the report's style."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = code_spans
    environment.filters["short"] = short
    css = Markup((here / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, version=PROGRAM_VERSION, **values)


def code_spans(sentence: str) -> Markup:
    """Text with `names` in backticks as HTML with <code>."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _tiles(data: ReportData) -> list[Tile]:
    view = main_view(data)
    student = best_student(view)
    if student is None:
        return []
    found = []
    values = view.accuracy_values(student.name)
    probe = probe_name(view.probe)
    over = f"mean over {plural(len(values), 'benchmark')}" if len(values) > 1 else "one benchmark"
    if values:
        found.append(Tile(percent(average(values) or 0.0), "%", f"top-1 of `{student.name}`, {probe}, {over}"))
    compared, gains = view.comparisons(student.name), view.gains(student)
    points, ratio = mean_points(compared), mean_ratio(compared)
    if points is not None:
        against = "" if ratio is None else f" ({100 * ratio:.1f} % of it)"
        found.append(Tile(signed(points), "points", f"against the best teacher of each benchmark{against}"))
    if gains:
        over = "over the same architecture at random initialisation"
        found.append(Tile(signed(average(gains) or 0.0), "points", over))
    return found


def _other_students(data: ReportData) -> list[str]:
    view = main_view(data)
    lead = best_student(view)
    lines = []
    for student in data.named("student"):
        compared = view.comparisons(student.name)
        if lead is None or student.name == lead.name or not compared:
            continue
        reached = f"{sum(c.reached for c in compared)} of {len(compared)}{mean_text(compared)}"
        lines.append(f"`{student.name}` reaches the best teacher on {reached}")
    return lines
