"""The main table of the report for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from unic_pipe.stages.report.data import EncoderEntry, ReportData
from unic_pipe.stages.report.summary import headline, main_view
from unic_pipe.stages.report.tables import Cell, Row, score_table

COLOURS = {"up": "green", "down": "yellow", "even": "dim"}


WIDE = 6
"""More encoders than this stand one below the other: their names would not fit side by side."""


def results_table(data: ReportData) -> Table:
    """Benchmarks x encoders for the main probe; under a student's score its difference to the best teacher, in points."""
    shown = score_table(data, main_view(data).probe)
    caption = Text(headline(data).replace("`", ""))
    measure = "scores" if shown.mixed else "top-1 in %"
    table = Table(title=Text(f"{shown.title}: {measure}"), caption=caption, caption_justify="left")
    rows = [*shown.rows, *shown.means]
    if len(shown.columns) > WIDE:
        return _one_below_the_other(table, shown.columns, rows)
    table.add_column("benchmark", overflow="fold")
    for encoder in shown.columns:
        table.add_column(
            Text(encoder.name), justify="right", overflow="fold", style="" if encoder.role == "student" else "dim"
        )
    for row in rows:
        table.add_row(row_name(row), *(cell_text(cell) for cell in row.cells), end_section=row is shown.rows[-1])
    return table


def _one_below_the_other(table: Table, encoders: Sequence[EncoderEntry], rows: Sequence[Row]) -> Table:
    """A row for each encoder, grouped by role, and a column for each benchmark."""
    table.add_column("encoder", overflow="fold")
    for row in rows:
        table.add_column(Text(row.name), justify="right", overflow="fold")
    for place, encoder in enumerate(encoders):
        last = place + 1 == len(encoders) or encoders[place + 1].role != encoder.role
        cells = (cell_text(row.cells[place], " ") for row in rows)
        table.add_row(encoder.name, *cells, end_section=last, style="" if encoder.role == "student" else "dim")
    return table


def row_name(row: Row) -> Text:
    """A benchmark, and below it what has to be known about its scores."""
    name = Text(row.name)
    for line in (row.note, *(part for part in row.detail.split("; ") if "better" in part)):
        if line:
            name.append(f"\n{line}", "dim")
    return name


def cell_text(cell: Cell, gap: str = "\n", failed: str = "red") -> Text:
    """A score with its spread and difference; `failed` is the colour of one that does not count."""
    found = Text(cell.text, "bold not dim" if cell.best else failed if cell.failed else "")
    if cell.spread:
        found.append(f" {cell.spread}", "not bold dim")
    if cell.difference:
        found.append(f"{gap}{cell.difference}", f"not bold {COLOURS[cell.direction]}")
    return found
