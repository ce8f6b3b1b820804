"""A comparison of runs for people: tables for a terminal, for Markdown, and as one HTML page."""

import os
from collections import Counter
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.schemas.comparisons import ComparedCell, ComparedTable, RunComparison
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.report.files import escaped, filled, markdown_score, markdown_table
from unic_pipe.stages.report.metrics import Metric, named_metric, signed
from unic_pipe.stages.report.render import fill
from unic_pipe.stages.report.summary import capital, probe_name
from unic_pipe.stages.report.tables import NONE, Cell, Column, Row, ScoreTable, direction

MARK = "†"


def shown(table: ComparedTable) -> ScoreTable:
    """A table with its best scores, differences and marks as text; groups are runs."""
    metric = named_metric(table.metric)
    rows = tuple(Row(row.benchmark, _cells(row.cells, metric)) for row in table.rows)
    mean = Row("Mean", _cells(table.mean, metric), f"of {table.mean_of} benchmarks")
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "" if metric.higher else ", lower is better"
    notes = dict.fromkeys(
        f"{row.benchmark}, {column.run}: {cell.problem}"
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.problem
    )
    return ScoreTable(
        title=f"{capital(probe_name(table.probe))}: {metric.title}{unit}{better}",
        columns=tuple(Column(column.encoder) for column in table.columns),
        sections=(("", rows),),
        means=(mean,) if table.mean else (),
        groups=tuple(Counter(column.run for column in table.columns).items()),
        of_runs=True,
        reference=_reference(table),
        notes=tuple(notes),
    )


def _reference(table: ComparedTable) -> str:
    later = [c for c in table.columns if c.reference is not None]
    if not later:
        return ""
    names = {c.encoder for c in later if c.reference is not None and table.columns[c.reference].encoder == c.encoder}
    first = table.columns[0]
    if not names:
        return f"{first.encoder} of {first.run}"
    text = f"the same encoder in {first.run}"
    return (
        text
        if len(names) == len({c.encoder for c in later})
        else f"{text}, or to {first.encoder} where that has none of the name"
    )


def _cells(cells: tuple[ComparedCell, ...], metric: Metric) -> tuple[Cell, ...]:
    fair = [metric.show(c.value) for c in cells if c.value is not None and not c.problem]
    best = (max if metric.higher else min)(fair, key=float) if len(fair) > 1 else ""
    found = []
    for cell in cells:
        if cell.value is None:
            found.append(Cell(NONE, hover="no result"))
            continue
        text = metric.show(cell.value)
        spread = "" if cell.spread is None else f"±{metric.show(cell.spread)}"
        if cell.problem:
            found.append(Cell(text + MARK, hover=cell.problem, failed=True, spread=spread))
            continue
        points = cell.difference
        difference = "" if points is None else signed(metric.scale * points, metric.digits)
        way = "" if points is None else direction(metric.better(points))
        found.append(Cell(text, text == best, difference=difference, direction=way, spread=spread))
    return tuple(found)


def for_terminal(comparison: RunComparison) -> RenderableType:
    """All tables, one below the other, with the reasons for marks."""
    parts: list[RenderableType] = []
    for table in map(shown, comparison.tables):
        parts.append(filled(Table(title=Text(table.title), title_justify="left"), table))
        parts += [Text(f"Differences: to {table.reference}.", "dim")] if table.reference else []
        parts += [*(Text(f"{MARK} not compared: {note}", "yellow") for note in table.notes), Text("")]
    return Group(*parts)


def for_markdown(comparison: RunComparison) -> str:
    """All tables in Markdown: benchmarks down, encoders by run across, differences in brackets."""
    parts = []
    for table in map(shown, comparison.tables):
        heads = [f"{run}: {column.name}" for run, column in zip(table.group_names, table.columns, strict=True)]
        rows = (
            (escaped(row.name), [markdown_score(c) + (f" ({c.difference})" if c.difference else "") for c in row.cells])
            for row in (*table.rows, *table.means)
        )
        parts += [f"**{table.title}**", "\n".join(markdown_table(map(escaped, heads), rows))]
        if table.reference:
            parts.append(f"In brackets: difference to {escaped(table.reference)}.")
        if table.notes:
            parts.append("\n".join(f"- {MARK} not compared: {escaped(note)}" for note in table.notes))
    protocols = (f"{escaped(run.label)} `{', '.join(run.protocols)}`" for run in comparison.runs)
    parts.append(f"Protocols: {'; '.join(protocols)}.")
    return "\n\n".join(parts) + "\n"


def write_page(file: Path, comparison: RunComparison) -> None:
    """One HTML page, complete in itself, in the report's style; appears whole or not at all.
    Raises UserError: the file is a folder."""
    if file.is_dir():
        raise UserError(f"{file} is a folder.", f"Name a file: --html {file / 'compare.html'}")
    text = fill("compare.html.j2", comparison=comparison, tables=[shown(table) for table in comparison.tables])
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
