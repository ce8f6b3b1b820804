"""The command `gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json

EXAMPLES = ("gc", "gc --yes")


def gc(
    yes: Annotated[
        bool, typer.Option("--yes", metavar=NO_VALUE, help="Remove it; without this it is only shown.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show what no manifest, pointer or configuration names any more, with sizes; --yes removes it.

    Never under a live run, and never anything that unic-pipe did not write.
    """
    from rich.console import Console

    from unic_pipe.cli.show.gc import garbage_lines
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
