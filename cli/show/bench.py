"""How a bench looks on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.schemas.bench import BenchReport, BenchRow
from unic_pipe.stages.bench.words import TITLES, comparisons, conditions, headlines


def bench_lines(report: BenchReport) -> RenderableType:
    """A table of all pieces, and what each part comes to; within 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("piece", no_wrap=True, min_width=14)
    for name in ("ms/image", "spread", "CPU ms", "of bound", "keeps busy"):
        table.add_column(name, justify="left" if name == "keeps busy" else "right", no_wrap=True)
    lines: list[RenderableType] = [table, Text()]
    for part, title in TITLES.items():
        rows = [row for row in report.rows if row.part == part]
        if not rows:
            continue
        table.add_row(Text(title, style="bold cyan"))
        for row in rows:
            table.add_row(*_cells(row))
    for part, words in headlines(report).items():
        lines.append(Text.assemble((f"{part:<8}", "bold"), words))
    lines += [Text(line) for line in comparisons(report)]
    lines += [Text(note, style="yellow") for note in report.notes]
    return Group(*lines, Text(conditions(report), style="dim"))


def _cells(row: BenchRow) -> tuple[str, ...]:
    ms = [1000 * seconds / row.images for seconds in (row.seconds, row.low_seconds, row.high_seconds)]
    share = "" if row.bound_share is None else f"{row.bound_share:.1%}"
    spread = f"{_ms(ms[1])}–{_ms(ms[2])}"
    return f"  {row.name}", _ms(ms[0]), spread, _ms(1000 * row.cpu_seconds / row.images), share, row.resource or ""


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
