"""The group `report`: what caches cost and lost."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import (
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
        no_args_is_help=True, rich_markup_mode="rich", epilog="Examples:\n$ [cyan]unic-pipe report cache[/]"
    )
    group.callback()(about)
    add_command(group, "Reports", cache, "report cache", "report cache --json --no-plot")
    app.add_typer(group, name="report", rich_help_panel="Looking")


def about() -> None:
    """Reports beside the one that evaluate writes."""


def cache(
    as_json: JsonOption = False,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Also measure all codecs, and draw them.")] = True,
    device: DeviceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show what compression cost: bits per value, size, signal-to-noise ratio and cosine, per teacher and token type.

    Read back from the cache and compared with the teacher, which runs again on 512 rows. The last column is what Gaussian
    features would need for the same ratio.
    """
    from rich.console import Console

    from pipeline.progress import ConsoleReporter
    from stages.report.cache import cache_report, loss_table

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
