"""How what `verify` finds looks on a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.cli.show.status import unsealed_line
from unic_pipe.pipeline.process.wrapping import Wrapped
from unic_pipe.schemas.status import LiveFinding, VerifyReport


def verify_lines(report: VerifyReport) -> RenderableType:
    """What was checked and what is wrong, grouped so that a person can act on it."""
    live: list[RenderableType] = [_live_table(report.live)] if report.live else []
    live += [Text(f"not run: {reason}", style="yellow") for reason in report.skipped]
    live += [unsealed_line(report.unsealed)] if report.unsealed else []
    live += (
        [Text(f"{len(report.sealed):,} files of an older version are sealed now, as they are.")]
        if report.sealed
        else []
    )
    live += [_leftovers_line(report.leftovers)] if report.leftovers else []
    if report.ok and report.quick:
        quick = (
            f"✔ {report.checked:,} files looked at (--quick): documents as recorded, all others there in their size."
        )
        return Group(
            *live, Text(quick, style="green"), Text("What is in shards, weights and checkpoints: unic-pipe verify")
        )
    if report.ok:
        return Group(*live, Text(f"✔ {report.checked:,} files checked, all as recorded.", style="green"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "file", "teacher", "view", "token", "block"):
        table.add_column(column)
    for problem in report.problems[:50]:
        values = (problem.teacher, problem.view, problem.token, problem.block)
        cells = ("" if v is None else str(v) for v in values)
        table.add_row(problem.kind, Wrapped(problem.path), *map(Wrapped, cells))
    more = len(report.problems) - 50
    tail = [Text(f"... and {more:,} more (--json lists all)")] if more > 0 else []
    count = len(report.problems)
    checked = "files looked at (--quick)" if report.quick else "files checked"
    head = Text(f"✘ {report.checked:,} {checked}, {count:,} problem{'s' if count > 1 else ''}:", style="bold red")
    return Group(*live, head, table, *tail)


def _leftovers_line(paths: Sequence[str]) -> Text:
    count = "1 leftover" if len(paths) == 1 else f"{len(paths):,} leftovers"
    return Text.assemble(
        f"{count} of killed runs, such as {paths[0]}: harmless. To remove them: ", ("unic-pipe gc --yes", "bold cyan")
    )


def _live_table(findings: Sequence[LiveFinding]) -> RenderableType:
    """Errors of the teachers that were run again, relative to the spread of their features."""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title="live teachers: how far cached features are from a fresh pass",
        title_justify="left",
        caption="in parts of their standard deviation: features of something unrelated are at 1.4. allowed: twice (mean), six"
        " times (max) what the codec loses, and rounding",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("teacher")
    for column in ("token", "samples", "mean", "allowed", "max", "allowed"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in findings:
        mark = Text("✔", style="green") if f.ok else Text("✘", style="bold red")
        numbers = (f.mean_error, f.mean_allowed, f.max_error, f.max_allowed)
        table.add_row(
            mark, Wrapped(f"{f.dataset}/{f.teacher}"), f.token, str(f.samples), *(f"{n:.2g}" for n in numbers)
        )
    return table
