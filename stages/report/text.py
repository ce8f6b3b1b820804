"""The main table of the report for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from stages.report.data import ReportData
from stages.report.summary import headline, main_view
from stages.report.tables import Cell, Row, score_table

COLOURS = {"up": "green", "down": "yellow", "even": "dim"}


def results_table(data: ReportData) -> Table:
    """Benchmarks x encoders for the main probe; under a student's score its difference to the best teacher, in points."""
    shown = score_table(data, main_view(data).probe)
    caption = Text(headline(data).replace("`", ""))
    table = Table(title=Text(f"{shown.title}: top-1 in %"), caption=caption, caption_justify="left")
    table.add_column("benchmark", overflow="fold")
    for encoder in shown.columns:
        table.add_column(
            Text(encoder.name), justify="right", overflow="fold", style="" if encoder.role == "student" else "dim"
        )
    for row in shown.rows:
        table.add_row(_name(row), *(_text(cell) for cell in row.cells), end_section=row is shown.rows[-1])
    if shown.mean is not None:
        table.add_row(_name(shown.mean), *(_text(cell) for cell in shown.mean.cells))
    return table


def _name(row: Row) -> Text:
    name = Text(row.name)
    if row.note:
        name.append(f"\n{row.note}", "dim")
    return name


def _text(cell: Cell) -> Text:
    found = Text(cell.text, "bold not dim" if cell.best else "red" if cell.failed else "")
    if cell.difference:
        found.append(f"\n{cell.difference}", f"not bold {COLOURS[cell.direction]}")
    return found
