"""How artefacts, problems and runs look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from unic_pipe.pipeline.process.progress import duration, human_bytes
from unic_pipe.pipeline.workspace.run_log import QUIET_S, silent_for
from unic_pipe.schemas.base import short
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.schemas.status import Artefact, LiveFinding, StatusReport, VerifyReport

if TYPE_CHECKING:
    from unic_pipe.pipeline.samples.survey import Survey
    from unic_pipe.stages.doctor import Check

_MARKS = {"fresh": ("✔", "green"), "partial": ("◐", "yellow"), "stale": ("↻", "magenta"), "missing": ("·", "dim")}
_UNITS = {"index": "rows", "extract": "units", "distill": "steps", "evaluate": "probes"}


def status_tree(report: StatusReport, title: str) -> RenderableType:
    """The artefacts as a tree of stages, with the next command below."""
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    folders: dict[str, Tree] = {}
    for artefact in report.artefacts:
        top, _, name = artefact.name.partition("/")
        if top not in folders:
            folders[top] = tree.add(Text(f"{top}/", style="bold"))
        folders[top].add(_line(artefact, name, _width(report.artefacts, top)))
    matrix = coverage_table(report)
    if report.next is None:
        following = Text("Everything is fresh.", style="green")
    else:
        following = Text.assemble(
            "Next: ", (report.next, "bold cyan"), "   (or everything: ", ("unic-pipe run", "cyan"), ")"
        )
    notes = [unsealed_line(report.unsealed)] if report.unsealed else []
    return Group(tree, Text(), *([matrix, Text()] if matrix is not None else []), *notes, following)


def unsealed_line(paths: Sequence[str]) -> Text:
    """Files of versions before there were seals; they are fine, but edits of them cannot be found."""
    files = f"{len(paths):,} files are" if len(paths) > 1 else "1 file is"
    return Text.assemble(
        (f"{files} unsealed (older version), such as {paths[0]}: ", "dim"), ("unic-pipe verify --seal", "cyan")
    )


COVERAGE_WIDTH = 32
"""Views that fit into a line of the coverage matrix; more are counted together."""


def coverage_table(report: StatusReport) -> RenderableType | None:
    """Teacher × token × view, one sign per view; None where every teacher has one view, or nothing is there."""
    shown = [a for a in report.artefacts if a.coverage and a.done]
    uneven = any(len({*map(len, a.coverage.values())}) > 1 for a in shown)
    if not uneven and all(a.state == "fresh" or max(map(len, a.coverage.values())) == 1 for a in shown):
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("coverage", "token", "views 0, 1, …", "blocks"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for artefact in shown:
        blocks = artefact.total // max(1, sum(map(len, artefact.coverage.values())))
        name = artefact.name.removeprefix("features/")
        for token, counts in artefact.coverage.items():
            signs = Text("".join("█" if n == blocks else "▒" if n else "·" for n in counts[:COVERAGE_WIDTH]))
            signs.append("" if len(counts) <= COVERAGE_WIDTH else f" +{len(counts) - COVERAGE_WIDTH}", style="dim")
            table.add_row(name, token, signs, f"{sum(counts):,} of {blocks * len(counts):,}")
            name = ""
    return table


def _width(artefacts: Iterable[Artefact], top: str) -> int:
    return max(len(a.name) - len(top) - 1 for a in artefacts if a.name.startswith(f"{top}/"))


def _line(artefact: Artefact, name: str, width: int) -> Text:
    mark, style = _MARKS[artefact.state]
    text = Text.assemble((f"{mark} ", style), f"{name:<{width}}  ", (f"{artefact.state:<7}", style))
    unit = _UNITS[artefact.stage]
    if artefact.state == "partial":
        share = f" ({artefact.done / artefact.total:.0%})" if artefact.total else ""
        text.append(f"  {artefact.done:,} of {artefact.total:,} {unit}{share}")
    elif artefact.state == "fresh":
        text.append(f"  {artefact.total:,} {unit}", style="dim")
    if artefact.digest is not None and artefact.state != "missing":
        text.append(f"  {short(artefact.digest)}", style="dim")
    if artefact.reason:
        # A long reason gets its own line, which a narrow terminal wraps as a whole.
        gap = "  " if len(text) + len(artefact.reason) < 68 else "\n  "
        text.append(f"{gap}{artefact.reason}", style="yellow" if artefact.state != "fresh" else "dim")
    return text


def running_table(runs: Sequence[RunDocument]) -> RenderableType:
    """Stages that are running now: where, how fast, how long still, and what they say."""
    if not runs:
        return Text("Nothing is running.", style="dim")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "where", "doing", "progress", "rate", "left", ""):
        table.add_column(column)
    for run in runs:
        quiet = silent_for(run)
        table.add_row(
            run.stage,
            f"{run.host}:{run.pid}",
            run.title,
            f"{run.done:,}/{run.total:,}",
            f"{run.rate:,.0f} {run.unit}/s" if run.rate else "",
            duration(run.eta_s) if run.eta_s is not None else "",
            f"silent for {duration(quiet)}" if quiet > QUIET_S else run.note,
        )
    return table


def _live_table(findings: Sequence[LiveFinding]) -> RenderableType:
    """Errors of the teachers that were run again, relative to the spread of their features."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title="live teachers: relative error", title_justify="left"
    )
    table.add_column("")
    table.add_column("teacher", overflow="fold")
    for column in ("token", "samples", "mean", "allowed", "max", "allowed"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in findings:
        mark = Text("✔", style="green") if f.ok else Text("✘", style="bold red")
        numbers = (f.mean_error, f.mean_allowed, f.max_error, f.max_allowed)
        table.add_row(mark, f"{f.dataset}/{f.teacher}", f.token, str(f.samples), *(f"{n:.2g}" for n in numbers))
    return table


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
        table.add_row(problem.kind, problem.path, *("" if v is None else str(v) for v in values))
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


def survey_line(name: str, found: Survey) -> Text:
    """What `init` found as one dataset."""
    about = "" if found.exact else "about "
    classes = (
        f"{found.classes:,} classes" if found.classes else "labels from a file" if found.config.labels else "no labels"
    )
    time = f"about {duration(found.seconds)}" if found.seconds >= 1 else "a second"
    return Text.assemble(
        (name, "bold"),
        f": {about}{found.rows:,} images in {found.layout.replace('-', ' ')}, {classes}, {human_bytes(found.bytes)};"
        f" indexing takes {time}",
    )


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """What `doctor` found, a line a check; advice is not wrapped, so that it can be copied."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = Text("✔", "green") if check.ok else Text("✘", "red")
        table = Table.grid(padding=(0, 1))
        table.add_row(mark, Text(f"{check.name:<{width}} ", "bold"), Text(check.finding))
        console.print(table)
        if not check.ok and check.advice:
            console.print(Text.assemble((" " * (width + 4) + "→ ", "cyan"), check.advice), soft_wrap=True)
