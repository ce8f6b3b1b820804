"""The report as text: `report.md` to paste, `results.csv` for spreadsheets and scripts, and tables of scores for the terminal."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from unic_pipe.pipeline.process.wrapping import Wrapped, fit_abreast
from unic_pipe.pipeline.workspace.results import dataset_digest
from unic_pipe.schemas.base import short
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.stages.report.data import ReportData
from unic_pipe.stages.report.render import put_text
from unic_pipe.stages.report.scores import seeds_of
from unic_pipe.stages.report.spread import seed_sentences, seed_tables
from unic_pipe.stages.report.summary import headline, main_view
from unic_pipe.stages.report.tables import NONE, Cell, Column, Row, ScoreTable, failures, score_table

MARKDOWN, CSV = "report.md", "results.csv"
CSV_COLUMNS = (
    "benchmark", "axis", "encoder", "role", "probe", "metric", "value", "spread", "seeds", "status", "message",
    "encoder_digest", "dataset_digest", "protocol",
)  # fmt: skip
ROLES = {"student": "student", "teacher": "teacher", "encoder": "", "baseline": "random initialisation"}


def write_text(folder: Path, data: ReportData, records: Sequence[ResultRecord]) -> None:
    """Write both files into a folder, atomically; equal ones are left alone."""
    put_text(folder, MARKDOWN, markdown(data))
    put_text(folder, CSV, results_csv(data, records))


def markdown(data: ReportData) -> str:
    """One table per probe: a row per encoder, a column per benchmark, the best of each column bold."""
    parts = [f"**{escaped(data.title)}**: {headline(data)}", *seed_sentences(data)]
    for table in [*(score_table(data, probe) for probe in data.probes), *seed_tables(data)]:
        parts.append(f"**{table.title}**, " + ("scores" if table.mixed else "top-1 in %"))
        parts.append(encoders_by_benchmarks(table))
    if any(score_table(data, probe).means for probe in data.probes):
        parts.append(
            "Under a student, Δ: its difference to the best teacher of each benchmark, in points. Log-odds: mean over the"
            " benchmarks of log(p / (1 − p)), p the top-1 accuracy clipped half a test image away from 0 and 1."
        )
    notes = [f"- failed: {s.benchmark}, {s.encoder}, {s.probe}: {one_line(s.message)}" for s in failures(data)]
    notes += [f"- skipped: {item.name}: {one_line(item.reason)}" for item in data.skipped]
    parts += ["\n".join(map(escaped, notes))] if notes else []
    digests = {s.encoder: short(s.encoder_digest) for s in data.scores if s.encoder_digest}
    sources = {s.benchmark: short(s.dataset_digest) for s in data.scores if s.dataset_digest}
    said = [f"{escaped(name)} `{digest}`" for name, digest in (*digests.items(), *sources.items())]
    parts.append("; ".join([f"Protocol `{data.protocol}`", *said]) + "." if data.protocol else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def encoders_by_benchmarks(table: ScoreTable) -> str:
    """A score table as papers print it: encoders down, benchmarks across, then the means."""
    across = [*table.rows, *table.means]
    rows: list[tuple[str, Iterable[str]]] = []
    for place, encoder in enumerate(table.columns):
        cells = [row.cells[place] for row in across]
        rows.append((_encoder(encoder), map(markdown_score, cells)))
        if any(cell.difference for cell in cells):
            rows.append(("Δ best teacher", [cell.difference for cell in cells]))
    return "\n".join(markdown_table((_heading(row.name, row.detail) for row in across), rows))


def markdown_table(heads: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """The lines of a table of numbers under heads; names and texts as they are to stand there."""
    columns = list(heads)
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]


def _heading(name: str, detail: str) -> str:
    measure = detail.split("; ")[0]
    return escaped(name) + (f" ({measure})" if " in " in measure else "")


def _encoder(encoder: Column) -> str:
    role = ROLES[encoder.role]
    return escaped(encoder.name) + (f" ({role})" if role else "")


def markdown_score(cell: Cell) -> str:
    """A score with its spread; the best in bold."""
    text = f"**{cell.text}**" if cell.best else cell.text or NONE
    return f"{text} {cell.spread}".rstrip()


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def one_line(text: str) -> str:
    """Text without line breaks."""
    return " ".join(text.split())


def results_csv(data: ReportData, records: Sequence[ResultRecord]) -> str:
    """One line per metric of every result; a failed result has one line without a value, with the reason."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result_rows(records, {b.name: b.axis for b in data.benchmarks}))
    for item in data.skipped:
        writer.writerow({"benchmark": item.name, "status": "skipped", "message": one_line(item.reason)})
    return out.getvalue()


def result_rows(records: Iterable[ResultRecord], axes: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """Every metric of every result, by `CSV_COLUMNS`; a failed result has a single one without a value. `axes`: what
    benchmarks measure, by name."""
    for record in records:
        common = {
            "benchmark": record.benchmark,
            "axis": axes.get(record.benchmark, ""),
            "encoder": record.encoder,
            "role": record.role,
            "probe": record.definition.probe,
            "seeds": " ".join(map(str, seeds_of(record))),
            "status": record.status,
            "message": one_line(record.message),
            "encoder_digest": record.definition.encoder,
            "dataset_digest": dataset_digest(record.definition),
            "protocol": record.definition.protocol,
        }
        found = {} if record.status == "failed" else record.metrics
        for metric, value in found.items() or (("", None),):
            yield {**common, "metric": metric, "value": value, "spread": record.spread.get(metric)}


def scores_table(records: Iterable[ResultRecord]) -> pa.Table:
    """The rows of `result_rows` as an Arrow table: numbers are float64, all else text."""
    rows = list(result_rows(records, {name: card.axis for name, card in cards().items()}))
    kinds = [(name, pa.float64() if name in ("value", "spread") else pa.string()) for name in CSV_COLUMNS]
    return pa.Table.from_pylist(rows, pa.schema(kinds))


COLOURS = {"up": "green", "down": "yellow", "even": "dim"}
WIDE = 6
"""More encoders than this stand one below the other, and those whose names do not fit side by side."""


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
    heads = [f"{g}\n{c.name}" if shown.of_runs else c.name for g, c in zip(groups, shown.columns, strict=True)]
    # A border and a space on both sides of each.
    if len(heads) <= WIDE and fit_abreast([max(("benchmark", *(r.name for r in rows)), key=len), *heads], border=3):
        table.add_column("benchmark")
        for head, column in zip(heads, shown.columns, strict=True):
            table.add_column(Wrapped(head), justify="right", style=_style(shown, column))
        for row in rows:
            cells = (_cell_text(cell, "\n", failed) for cell in row.cells)
            table.add_row(_row_name(row), *cells, end_section=row is shown.rows[-1])
        return table
    for head in ("run", "encoder") if shown.of_runs else ("encoder",):
        table.add_column(head)
    for row in rows:
        table.add_column(Wrapped(row.name), justify="right")
    for place, (group, column) in enumerate(zip(groups, shown.columns, strict=True)):
        run = [Wrapped("" if group in groups[place - 1 : place] else group)] if shown.of_runs else []
        cells = (_cell_text(row.cells[place], " ", failed) for row in rows)
        last = groups[place + 1 : place + 2] != (group,)
        table.add_row(*run, Wrapped(column.name), *cells, end_section=last, style=_style(shown, column))
    return table


def _style(shown: ScoreTable, column: Column) -> str:
    return "" if shown.of_runs or column.role == "student" else "dim"


def _row_name(row: Row) -> Group:
    """A benchmark, and below it what has to be known about its scores."""
    notes = (row.note, *(part for part in row.detail.split("; ") if "better" in part))
    return Group(Wrapped(row.name), *(Wrapped(note, "dim") for note in notes if note))


def _cell_text(cell: Cell, gap: str, failed: str) -> Text:
    """A score with its spread and difference; `failed` is the colour of one that does not count."""
    found = Text(cell.text, "bold not dim" if cell.best else failed if cell.failed else "")
    if cell.spread:
        found.append(f" {cell.spread}", "not bold dim")
    if cell.difference:
        found.append(f"{gap}{cell.difference}", f"not bold {COLOURS[cell.direction]}")
    return found
