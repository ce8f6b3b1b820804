"""The commands that look and do not make: status, plan, verify, teachers, doctor."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    RowsOption,
    SetOption,
    add_command,
    open_inventory,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Looking"
    add_command(app, panel, status, "status", "status --watch")
    add_command(app, panel, plan, "plan", "plan --disk 1TB --deadline 48h", "plan --nodes 16 --gpus 8")
    add_command(
        app, panel, verify, "verify", "verify --quick", "verify --live 64", "verify --read-only --json", "verify --seal"
    )
    add_command(app, panel, gc, "gc", "gc --yes")
    add_command(app, panel, teachers, "teachers", "teachers --fetch")
    add_command(app, panel, doctor, "doctor")


def status(
    watch: Annotated[
        bool, typer.Option("--watch", metavar=NO_VALUE, help="Keep showing it, and what runs now.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show every artefact: fresh, partial, stale (and why) or missing; and the next command."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from unic_pipe.cli.show import running_table, status_tree
    from unic_pipe.pipeline.workspace.run_log import running
    from unic_pipe.pipeline.workspace.status import make_plan

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


def plan(
    disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Find settings that fit, for instance 1TB or 200GB.", show_default=False),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Find settings that are done in 48h, 30min or 3d.", show_default=False),
    ] = None,
    throughput: Annotated[
        float | None,
        typer.Option(
            metavar="IMG/S", min=1e-9, help="Images × views per second, instead of measuring.", show_default=False
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Also plan for a cluster of N machines.", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option(metavar="N", min=0, help="GPUs of each (0: its cores do it all).")] = 0,
    cores: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Cores of each (default: as many as here).", show_default=False),
    ] = None,
    rows: RowsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Say what extract, distill and evaluate will take: bytes, files, hours, and what they wait for.

    A short measurement of each encoder on your own images is kept in runs/, and makes the disk check of extract exact.
    --disk and --deadline print the lines of unic-pipe.yaml that fit. --nodes 16 --gpus 8 says what the same takes on a
    cluster; --throughput is then that of one GPU (without GPUs, of one node).
    """
    from rich.console import Console

    from unic_pipe.cli.show_plan import plan_lines
    from unic_pipe.cli.units import parse_bytes, parse_seconds
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.process.threads import usable_cores
    from unic_pipe.stages.distill.measure.cost import step_cost
    from unic_pipe.stages.plan.cluster import Cluster
    from unic_pipe.stages.plan.stage import PlanOptions
    from unic_pipe.stages.plan.stage import plan as plan_stage

    inventory = open_inventory(config, overrides, rows)
    options = PlanOptions(
        device=device or inventory.config.compute.device,
        throughput=throughput,
        disk=parse_bytes(disk) if disk is not None else None,
        deadline=parse_seconds(deadline) if deadline is not None else None,
        cluster=Cluster(nodes, gpus, cores or usable_cores()) if nodes is not None else None,
    )
    report = plan_stage(inventory, options, step_cost, ConsoleReporter())
    if as_json:
        print_json(report)
    else:
        Console(highlight=False).print(plan_lines(report))
        if report.advice is not None:
            print(report.advice)
    return 0


def verify(
    as_json: JsonOption = False,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", metavar=NO_VALUE, help="Only report; set nothing aside for repair."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", metavar=NO_VALUE, help="Documents and sizes only; shards are not read.")
    ] = False,
    live: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also run every teacher again on N random samples and compare.")
    ] = 0,
    seal: Annotated[
        bool,
        typer.Option(
            "--seal",
            metavar=NO_VALUE,
            help="Add a checksum to files of older versions, which have none, as they are now.",
        ),
    ] = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Hash every file of every artefact and compare with what was recorded.

    --live finds what no hash can: a cache that was made by other weights or pixels than it says.

    Exit code 1 if anything is damaged. Damaged units of a feature cache are set aside, so that the next extract makes
    exactly those again.
    """
    from rich.console import Console

    from unic_pipe.cli.show import verify_lines
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.stages.verify import VerifyOptions
    from unic_pipe.stages.verify import verify as verify_stage

    inventory = open_inventory(config, overrides)
    options = VerifyOptions(read_only, quick, live, device or inventory.config.compute.device, seal)
    report, hint = verify_stage(inventory, options, ConsoleReporter())
    if as_json:
        asked = {"live", "skipped"} if live else set()
        empty = {name for name in ("live", "skipped", "unsealed", "sealed") if not getattr(report, name)}
        print_json(report.model_dump(mode="json", exclude=empty - asked))
    else:
        console = Console(highlight=False)
        console.print(verify_lines(report))
        if hint:
            console.print(f"Next: [bold cyan]{hint}[/]")
    return 0 if report.ok else 1


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

    from unic_pipe.cli.show_garbage import garbage_lines
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


def teachers(
    fetch: Annotated[bool, typer.Option("--fetch", metavar=NO_VALUE, help="Download what is missing.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """List configured and known teachers: their weights, found or missing, and their licences.

    Nothing but --fetch touches the network: it downloads the missing weights of configured teachers into weights_dir.
    """
    from unic_pipe.cli.catalogue import show_teachers

    return show_teachers(fetch, as_json, config, overrides)


def doctor(as_json: JsonOption = False, config: ConfigOption = None, overrides: SetOption = None) -> int:
    """Check this machine: device, decode and disk rates, weights found, write access, versions."""
    from rich.console import Console

    from unic_pipe.cli.show import show_checks
    from unic_pipe.stages.doctor import examine

    checks = examine(config, overrides or ())
    if as_json:
        print_json({"checks": [check.as_dict() for check in checks], "ok": all(c.ok for c in checks)})
    else:
        show_checks(checks, Console(highlight=False))
    return 0 if all(c.ok for c in checks) else 1
