"""A comparison of runs for people: tables for a terminal, for Markdown, and as one HTML page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.schemas.comparisons import ComparedCell, ComparedTable, RunComparison
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.report.files import escaped
from unic_pipe.stages.report.metrics import Metric, named_metric, signed
from unic_pipe.stages.report.render import fill
from unic_pipe.stages.report.summary import capital, probe_name
from unic_pipe.stages.report.tables import NONE, Cell, Row, direction
from unic_pipe.stages.report.text import WIDE, cell_text, row_name

MARK = "†"


@dataclass(frozen=True)
class Shown:
    """One table as finished text: columns are encoders, grouped by run; the last row may be the mean."""

    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    mean: Row | None
    reference: str
    """What the differences are to; empty for a single run."""
    notes: tuple[str, ...]
    """Why marked scores are not compared."""


def shown(table: ComparedTable) -> Shown:
    """A table with its best scores, differences and marks as text."""
    metric = named_metric(table.metric)
    groups: dict[str, int] = {}
    for column in table.columns:
        groups[column.run] = groups.get(column.run, 0) + 1
    rows = tuple(Row(row.benchmark, "", "", _cells(row.cells, metric)) for row in table.rows)
    mean = Row("Mean", f"of {table.mean_of} benchmarks", "", _cells(table.mean, metric)) if table.mean else None
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "" if metric.higher else ", lower is better"
    notes: dict[str, None] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.problem:
                notes[f"{row.benchmark}, {column.run}: {cell.problem}"] = None
    return Shown(
        f"{capital(probe_name(table.probe))}: {metric.title}{unit}{better}",
        tuple(groups.items()),
        tuple(column.encoder for column in table.columns),
        rows,
        mean,
        _reference(table),
        tuple(notes),
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
        parts += [_wide(table) if len(table.columns) > WIDE else _table(table), *_remarks(table)]
    return Group(*parts)


def _remarks(table: Shown) -> list[Text]:
    lines = [Text(f"Differences: to {table.reference}.", "dim")] if table.reference else []
    lines += [Text(f"{MARK} not compared: {note}", "yellow") for note in table.notes]
    return [*lines, Text("")]


def _runs(table: Shown) -> list[str]:
    return [run for run, span in table.groups for _ in range(span)]


def _rows(table: Shown) -> list[Row]:
    return [*table.rows, *([table.mean] if table.mean else [])]


def _table(table: Shown) -> Table:
    found = Table(title=Text(table.title), title_justify="left")
    found.add_column("benchmark", overflow="fold")
    for run, encoder in zip(_runs(table), table.columns, strict=True):
        found.add_column(Text(f"{run}\n{encoder}"), justify="right", overflow="fold")
    for row in _rows(table):
        last = table.mean is not None and row is table.rows[-1]
        found.add_row(row_name(row), *(cell_text(cell, failed="yellow") for cell in row.cells), end_section=last)
    return found


def _wide(table: Shown) -> Table:
    """Many encoders stand one below the other: their names would not fit side by side."""
    found = Table(title=Text(table.title), title_justify="left")
    found.add_column("run", overflow="fold")
    found.add_column("encoder", overflow="fold")
    for row in _rows(table):
        found.add_column(Text(row.name), justify="right", overflow="fold")
    runs = _runs(table)
    for place, encoder in enumerate(table.columns):
        last = place + 1 == len(runs) or runs[place + 1] != runs[place]
        first = place == 0 or runs[place - 1] != runs[place]
        cells = (cell_text(row.cells[place], " ", "yellow") for row in _rows(table))
        found.add_row(Text(runs[place] if first else ""), Text(encoder), *cells, end_section=last)
    return found


def for_markdown(comparison: RunComparison) -> str:
    """All tables in Markdown: benchmarks down, encoders by run across, differences in brackets."""
    parts = []
    for table in map(shown, comparison.tables):
        heads = [f"{run}: {encoder}" for run, encoder in zip(_runs(table), table.columns, strict=True)]
        lines = ["| | " + " | ".join(map(escaped, heads)) + " |", "|---|" + "---:|" * len(heads)]
        rows = ((row.name, " | ".join(map(_markdown_cell, row.cells))) for row in _rows(table))
        lines += [f"| {escaped(name)} | {cells} |" for name, cells in rows]
        parts += [f"**{table.title}**", "\n".join(lines)]
        if table.reference:
            parts.append(f"In brackets: difference to {escaped(table.reference)}.")
        if table.notes:
            parts.append("\n".join(f"- {MARK} not compared: {escaped(note)}" for note in table.notes))
    protocols = (f"{escaped(run.label)} `{', '.join(run.protocols)}`" for run in comparison.runs)
    parts.append(f"Protocols: {'; '.join(protocols)}.")
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return " ".join(part for part in (text, cell.spread, f"({cell.difference})" if cell.difference else "") if part)


def write_page(file: Path, comparison: RunComparison) -> None:
    """One HTML page, complete in itself, in the report's style; appears whole or not at all.

    Raises:
        UserError: the file is a folder.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder.", f"Name a file: --html {file / 'compare.html'}")
    text = fill("compare.html.j2", comparison=comparison, tables=[shown(table) for table in comparison.tables])
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
