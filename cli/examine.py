"""The commands that look and do not make: status, verify, teachers, doctor."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cli.options import ConfigOption, JsonOption, SetOption, open_inventory, print_json


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (status, verify, teachers, doctor):
        app.command(rich_help_panel="Looking")(command)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, with what is running now.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show every artefact: fresh, partial, stale (and why) or missing, and the command to type next."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from cli.show import running_table, status_tree
    from pipeline.planning import make_plan
    from pipeline.runs import running

    inventory = open_inventory(config, overrides)
    if as_json:
        print_json(make_plan(inventory))
        return 0

    def picture() -> Group:
        fresh = open_inventory(config, overrides)
        tree = status_tree(make_plan(fresh), str(fresh.folder))
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


def verify(
    as_json: JsonOption = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only report; do not set damaged units aside for repair.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Hash every file of every artefact and compare with what was recorded. Exit code 1 if anything is damaged.

    Damaged units of a feature cache are set aside, so that the next extract makes exactly those again.
    """
    from rich.console import Console

    from cli.show import verify_lines
    from pipeline.progress import ConsoleReporter
    from stages.verify import verify as verify_stage

    inventory = open_inventory(config, overrides)
    report, hint = verify_stage(inventory, read_only, ConsoleReporter())
    if as_json:
        print_json(report)
    else:
        console = Console(highlight=False)
        console.print(verify_lines(report))
        if hint:
            console.print(f"Next: [bold cyan]{hint}[/]")
    return 0 if report.ok else 1


def teachers(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download missing weights into weights_dir.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """List known and configured teachers: architecture, weights found or missing, licence, and their YAML line.

    Only --fetch touches the network. Any other timm model is timm:NAME, a file of your own checkpoint:PATH.
    """
    from cli.catalogue import show_teachers

    return show_teachers(fetch, as_json, config, overrides)


def doctor(as_json: JsonOption = False, config: ConfigOption = None, overrides: SetOption = None) -> int:
    """Check this machine: device, decode and disk rates, weights found, write access, versions."""
    from rich.console import Console

    from stages.doctor import examine

    checks = examine(config, overrides or ())
    if as_json:
        print_json({"checks": [check.as_dict() for check in checks], "ok": all(c.ok for c in checks)})
    else:
        console = Console(highlight=False)
        for check in checks:
            mark = "[green]✔[/]" if check.ok else "[red]✘[/]"
            console.print(f"{mark} [bold]{check.name:<10}[/] {check.finding}")
            if not check.ok and check.advice:
                console.print(f"  [cyan]→[/] {check.advice}")
    return 0 if all(c.ok for c in checks) else 1
