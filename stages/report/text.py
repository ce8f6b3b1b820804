"""Tables of scores for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from unic_pipe.stages.report.data import ReportData
from unic_pipe.stages.report.spread import seed_sentences
from unic_pipe.stages.report.summary import headline, main_view
from unic_pipe.stages.report.tables import Cell, Column, Row, ScoreTable, score_table

COLOURS = {"up": "green", "down": "yellow", "even": "dim"}
WIDE = 6
"""More encoders than this stand one below the other: their names would not fit side by side."""


def results_table(data: ReportData) -> Table:
    """Benchmarks x encoders for the main probe; under a student's score its difference to the best teacher, in points."""
    shown = score_table(data, main_view(data).probe)
    caption = Text("\n".join([headline(data), *seed_sentences(data)]).replace("`", ""))
    title = Text(f"{shown.title}: {'scores' if shown.mixed else 'top-1 in %'}")
    return filled(Table(title=title, caption=caption, caption_justify="left"), shown)


def filled(table: Table, shown: ScoreTable) -> Table:
    """The table with a row for each benchmark; with many encoders a row for each of these, and a column for each of those."""
    rows = [*shown.rows, *shown.means]
    failed = "yellow" if shown.of_runs else "red"
    groups = shown.group_names
    if len(shown.columns) <= WIDE:
        table.add_column("benchmark", overflow="fold")
        for group, column in zip(groups, shown.columns, strict=True):
            head = f"{group}\n{column.name}" if shown.of_runs else column.name
            table.add_column(Text(head), justify="right", overflow="fold", style=_style(shown, column))
        for row in rows:
            cells = (_cell_text(cell, "\n", failed) for cell in row.cells)
            table.add_row(_row_name(row), *cells, end_section=row is shown.rows[-1])
        return table
    for head in ("run", "encoder") if shown.of_runs else ("encoder",):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_column(Text(row.name), justify="right", overflow="fold")
    for place, (group, column) in enumerate(zip(groups, shown.columns, strict=True)):
        run = [Text("" if group in groups[place - 1 : place] else group)] if shown.of_runs else []
        cells = (_cell_text(row.cells[place], " ", failed) for row in rows)
        last = groups[place + 1 : place + 2] != (group,)
        table.add_row(*run, Text(column.name), *cells, end_section=last, style=_style(shown, column))
    return table


def _style(shown: ScoreTable, column: Column) -> str:
    return "" if shown.of_runs or column.role == "student" else "dim"


def _row_name(row: Row) -> Text:
    """A benchmark, and below it what has to be known about its scores."""
    name = Text(row.name)
    for line in (row.note, *(part for part in row.detail.split("; ") if "better" in part)):
        if line:
            name.append(f"\n{line}", "dim")
    return name


def _cell_text(cell: Cell, gap: str, failed: str) -> Text:
    """A score with its spread and difference; `failed` is the colour of one that does not count."""
    found = Text(cell.text, "bold not dim" if cell.best else failed if cell.failed else "")
    if cell.spread:
        found.append(f" {cell.spread}", "not bold dim")
    if cell.difference:
        found.append(f"{gap}{cell.difference}", f"not bold {COLOURS[cell.direction]}")
    return found
