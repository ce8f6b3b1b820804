"""The command `status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json

if TYPE_CHECKING:
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.status import StatusReport


EXAMPLES = ("status", "status --watch")


def status(
    watch: Annotated[
        bool, typer.Option("--watch", metavar=NO_VALUE, help="Keep showing it, and what runs now.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show every artefact: fresh, partial, stale (and why) or missing; and the next command.

    Artefacts are indexes of samples, caches of features, students and evaluations. Fresh: finished as unic-pipe.yaml says now.
    Partial: begun. Stale: there, but made from something else than is configured now.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from unic_pipe.cli.show.status import running_table, status_tree
    from unic_pipe.pipeline.process.progress import ConsoleReporter, SilentReporter
    from unic_pipe.pipeline.workspace.run_log import running

    inventory = open_inventory(config, overrides)
    judge_new(inventory, SilentReporter() if as_json else ConsoleReporter())
    if as_json:
        print_json(look(inventory))
        return 0

    def picture() -> Group:
        fresh = open_inventory(config, overrides)
        tree = status_tree(look(fresh), str(fresh.folder))
        runs = running(fresh.folder)
        return Group(tree, Text(), running_table(runs)) if runs or watch else Group(tree)

    console = Console(highlight=False)
    if not watch:
        console.print(picture())
        return 0
    with Live(picture(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(2)
            live.update(picture(), refresh=True)


def judge_new(inventory: Inventory, reporter: Reporter) -> None:
    """Find out whether students of new architectures can be trained: building them takes PyTorch, once for each."""
    from unic_pipe.pipeline.workspace.trainable import unjudged

    if new := unjudged(inventory):
        reporter.say(f"building {', '.join(new)} once, which shows what can be trained")
        from unic_pipe.stages.distill.blueprint import judge_students

        judge_students(inventory)


def look(inventory: Inventory) -> StatusReport:
    """Every artefact as it is now."""
    from unic_pipe.pipeline.workspace.other_students import other_students
    from unic_pipe.pipeline.workspace.status import make_plan
    from unic_pipe.pipeline.workspace.unmeant import remarks

    found = {"others": tuple(other_students(inventory)), "remarks": remarks(inventory)}
    return make_plan(inventory).model_copy(update=found)


def print_state(wanted: bool, inventory: Inventory, rows: str | None = None) -> None:
    """Of a stage that ended, if it is wanted: every artefact as it is now, as `status --json` prints it."""
    if wanted:
        from unic_pipe.pipeline.workspace.inventory import Inventory

        print_json(look(Inventory(inventory.workspace, rows)))
