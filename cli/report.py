"""The group `report`: the page again, runs side by side, what caches cost and lost."""

from pathlib import Path
from typing import Annotated

import typer

from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    SetOption,
    add_command,
    open_inventory,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the group to the program."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="rich",
        epilog="Examples:\n$ [cyan]unic-pipe report html[/]\n$ [cyan]unic-pipe report compare runs/a runs/b[/]",
    )
    group.callback()(about)
    add_command(group, "Reports", html, "report html")
    add_command(
        group,
        "Reports",
        compare,
        "report compare runs/a runs/b",
        "report compare . colleague/results.parquet --encoder main --html both.html",
        "report compare runs/* --metric top1 --metric per_class --markdown",
    )
    add_command(group, "Reports", cache, "report cache", "report cache --json --no-plot")
    app.add_typer(group, name="report", rich_help_panel="Looking")


def about() -> None:
    """Write the report again, put several runs side by side, or show what caches cost."""


def html(config: ConfigOption = None, overrides: SetOption = None) -> int:
    """Write the report of the evaluation again, from the results that are there; nothing is probed.

    evaluate and run do this by themselves. It writes report.html, report.md and results.csv beside results.parquet.
    """
    from rich.console import Console

    from unic_pipe.schemas.errors import UserError
    from unic_pipe.stages.report.stage import records_in_force, report

    inventory = open_inventory(config, overrides)
    records = records_in_force(inventory)
    if not records:
        raise UserError("There is no result in force to report on.", "Make some: unic-pipe evaluate")
    path, table = report(inventory, records)
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(f"report: {path}", markup=False, soft_wrap=True)
    return 0


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A working folder, an evaluation's folder, or a results.parquet."),
    ],
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", "-e", metavar="NAME", help="Only this one (repeatable)."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="For instance per_class (repeatable); all: every one."),
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", metavar=NO_VALUE, help="Print Markdown tables on stdout.")
    ] = False,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write one HTML page.")] = None,
) -> int:
    """Put the results of several runs side by side: benchmarks down, encoders by run across.

    Differences are to the same encoder in the first run, or to its first encoder. Scores of another protocol version or
    on other data are marked, and compared with nothing.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import messages
    from unic_pipe.schemas.errors import UserError
    from unic_pipe.stages.report.comparison import compare_runs
    from unic_pipe.stages.report.comparison_text import for_markdown, for_terminal, write_page
    from unic_pipe.stages.report.runs import load_runs

    if as_json and as_markdown:
        raise UserError("--json and --markdown both print on stdout.", "Leave one out.")
    found = compare_runs(load_runs(runs), encoder or (), metric or ())
    said = messages()
    if as_json:
        print_json(found)
    elif as_markdown:
        typer.echo(for_markdown(found), nl=False)
    else:
        Console(highlight=False).print(for_terminal(found))
    if not found.comparable:
        said.print("warning: some scores are of another protocol or on other data; they are not compared.")
    if page is not None:
        write_page(page, found)
        said.print(f"page: {page}", markup=False, soft_wrap=True)
    return 0


def cache(
    as_json: JsonOption = False,
    plot: Annotated[
        bool, typer.Option("--plot/--no-plot", metavar=NO_VALUE, help="Also measure all codecs, and draw them.")
    ] = True,
    device: DeviceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show what compression cost: bits per value, size, signal-to-noise ratio and cosine, per teacher and token type.

    Read back from the cache and compared with the teacher, which runs again on 512 rows. R(D) is what Gaussian
    features would need for the same ratio.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.stages.report.cache import cache_report, loss_table

    inventory = open_inventory(config, overrides)
    reporter = ConsoleReporter()
    found, path = cache_report(inventory, device or inventory.config.compute.device, plot, reporter)
    if as_json:
        print_json(found)
    else:
        Console(highlight=False).print(loss_table(found.rows))
    if path is not None:
        reporter.say(f"curves: {path}")
    return 0
