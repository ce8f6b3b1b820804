"""How artefacts and runs look on a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from unic_pipe.pipeline.process.progress import duration, pace
from unic_pipe.pipeline.process.wrapping import Wrapped
from unic_pipe.pipeline.workspace.run_log import QUIET_S, silent_for
from unic_pipe.schemas.base import short
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.schemas.status import Artefact, StatusReport

_MARKS = {"fresh": ("✔", "green"), "partial": ("◐", "yellow"), "stale": ("↻", "magenta"), "missing": ("·", "dim")}
_UNITS = {"index": "rows", "extract": "units", "distill": "steps", "evaluate": "probes"}
COVERAGE_WIDTH = 32
"""Views that fit into a line of the coverage matrix; more are counted together."""


def status_tree(report: StatusReport, title: str) -> RenderableType:
    """The artefacts as a tree of stages, with the next command below."""
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    folders: dict[str, Tree] = {}
    everything = (*report.artefacts, *report.others)
    for artefact in everything:
        top, _, name = artefact.name.partition("/")
        if top not in folders:
            folders[top] = tree.add(Text(f"{top}/", style="bold"))
        width = max(len(a.name) for a in everything if a.name.startswith(f"{top}/")) - len(top) - 1
        folders[top].add(_line(artefact, name, width))
    matrix = coverage_table(report)
    if report.next is None and any(a.state != "fresh" for a in report.artefacts):
        following = Text("Correct unic-pipe.yaml first, as the line above says.", style="bold red")
    elif report.next is None:
        begun = [a.next for a in report.others if a.next is not None]
        following = Text(
            "Everything that unic-pipe.yaml asks for is fresh." if begun else "Everything is fresh.", "green"
        )
        for command in begun:
            following.append_text(Text.assemble("\nTo go on: ", (command, "bold cyan")))
    else:
        following = Text.assemble(
            "Next: ", (report.next, "bold cyan"), "   (or everything: ", ("unic-pipe run", "cyan"), ")"
        )
    for artefact in report.artefacts:
        page = Path(title, artefact.path or "", "report.html")
        if artefact.stage == "evaluate" and page.is_file():
            following.append(f"\nreport: {page}")
    notes = [Text(remark, style="yellow") for remark in report.remarks]
    notes += [unsealed_line(report.unsealed)] if report.unsealed else []
    return Group(tree, Text(), *([matrix, Text()] if matrix is not None else []), *notes, following)


def unsealed_line(paths: Sequence[str]) -> Text:
    """Files of versions before there were seals; they are fine, but edits of them cannot be found."""
    files = f"{len(paths):,} files are" if len(paths) > 1 else "1 file is"
    return Text.assemble(
        (f"{files} unsealed (older version), such as {paths[0]}: ", "dim"), ("unic-pipe verify --seal", "cyan")
    )


def coverage_table(report: StatusReport) -> RenderableType | None:
    """Teacher × token × view, one sign per view; None where every teacher has one view, or nothing is there."""
    shown = [a for a in report.artefacts if a.coverage and a.done]
    uneven = any(len({*map(len, a.coverage.values())}) > 1 for a in shown)
    if not uneven and all(a.state == "fresh" or max(map(len, a.coverage.values())) == 1 for a in shown):
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("coverage", "token", "views 0, 1, …", "blocks"):
        table.add_column(column, no_wrap=column != "coverage")
    for artefact in shown:
        blocks = artefact.total // max(1, sum(map(len, artefact.coverage.values())))
        name = artefact.name.removeprefix("features/")
        for token, counts in artefact.coverage.items():
            signs = Text("".join("█" if n == blocks else "▒" if n else "·" for n in counts[:COVERAGE_WIDTH]))
            signs.append("" if len(counts) <= COVERAGE_WIDTH else f" +{len(counts) - COVERAGE_WIDTH}", style="dim")
            table.add_row(Wrapped(name), token, signs, f"{sum(counts):,} of {blocks * len(counts):,}")
            name = ""
    return table


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
    for column in ("stage", "progress", "rate", "left", "doing"):
        table.add_column(column, no_wrap=column != "doing")
    for run in runs:
        quiet = silent_for(run)
        said = f"silent for {duration(quiet)}" if quiet > QUIET_S else run.note
        table.add_row(
            run.stage,
            f"{run.done:,}/{run.total:,}",
            pace(run.rate, run.unit) if run.rate > 0 else "",
            duration(run.eta_s) if run.eta_s is not None else "",
            Wrapped("\n".join(filter(None, (run.title, said, f"on {run.host}:{run.pid}")))),
        )
    return table
