"""The command `gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unic_pipe.schemas.garbage import GarbageReport

EXAMPLES = ("gc", "gc --yes")


def gc(
    yes: Annotated[
        bool, typer.Option("--yes", metavar=NO_VALUE, help="Remove it; without this it is only shown.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show files that nothing refers to any more, with sizes; --yes removes them.

    Such as features, students and results of changed settings, what killed runs left, and what verify set aside.

    Never under a live run, and never anything that unic-pipe did not write.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.stages.gc.stage import collect, find, require_quiet

    inventory = open_inventory(config, overrides)
    report = find(inventory)
    if not as_json:
        Console(highlight=False).print(garbage_lines(report, yes))
    if yes:
        require_quiet(inventory.folder)
        report = collect(inventory, report, ConsoleReporter())
    if as_json:
        print_json(report)
    return 0


def garbage_lines(report: GarbageReport, yes: bool) -> RenderableType:
    """Every item with its size, the total, what is left alone, and what to type next."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from unic_pipe.pipeline.process.progress import human_bytes
    from unic_pipe.pipeline.process.wrapping import Wrapped

    parts: list[RenderableType] = []
    if report.items:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("path")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("files", justify="right", no_wrap=True)
        table.add_column("why")
        for item in report.items:
            table.add_row(Wrapped(item.path), human_bytes(item.bytes), f"{item.files:,}", Wrapped(item.why))
        parts.append(table)
    total = f"{human_bytes(report.bytes)} in {len(report.items):,} places"
    if not report.items:
        parts.append(Text("Nothing to remove.", style="green"))
    elif yes:
        parts.append(Text(f"Removing {total}.", style="bold"))
    else:
        parts.append(Text.assemble(f"{total}. To remove it: ", ("unic-pipe gc --yes", "bold cyan")))
    parts += [Text(f"left alone, not all of it is unic-pipe's: {path}", style="dim") for path in report.unknown]
    return Group(*parts)
