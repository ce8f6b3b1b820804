"""The command `plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    RowsOption,
    SetOption,
    open_inventory,
    print_json,
)

if TYPE_CHECKING:
    pass


EXAMPLES = (
    "plan",
    "plan --disk 1TB --deadline 48h",
    "plan --nodes 16 --gpus 8",
)


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

    Datasets have to be indexed, and weights to be here: what is not known yet is named, and the exit code is 1.

    A short measurement of each encoder on your own images is kept in runs/, and makes the disk check of extract exact.
    --disk and --deadline print the lines of unic-pipe.yaml that fit. --nodes 16 --gpus 8 says what the same takes on a
    cluster; --throughput is then that of one GPU (without GPUs, of one node).
    """
    from rich.console import Console

    from unic_pipe.cli.show.plan import parse_bytes, parse_seconds, plan_lines
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.process.threads import usable_cores
    from unic_pipe.stages.distill.blueprint import check_students
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
    check_students(inventory)
    report = plan_stage(inventory, options, step_cost, ConsoleReporter())
    if as_json:
        print_json(report)
    else:
        Console(highlight=False).print(plan_lines(report))
        if report.advice is not None:
            print(report.advice)
    return 1 if report.unknown else 0
