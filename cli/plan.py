"""The command `plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    RowsOption,
    SetOption,
    open_inventory,
    print_json,
)
from unic_pipe.cli.running import LOOKING, check_students

if TYPE_CHECKING:
    from unic_pipe.schemas.students import StudentDefinition
    from unic_pipe.stages.distill.measure.cost import StepCost

EXAMPLES = ("plan", "plan --disk 1TB --deadline 48h")


def plan(
    disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Find settings that fit, for instance 1TB or 200GB."),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Find settings that are done in 48h, 30min or 3d."),
    ] = None,
    throughput: Annotated[
        float | None,
        typer.Option(metavar="IMG/S", min=0.001, help="Images × views per second, instead of measuring."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", metavar=NO_VALUE, help="Measure again what was measured before.")
    ] = False,
    rows: RowsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Say what extract, distill and evaluate will take: bytes, files, hours, and what they wait for.

    Datasets have to be indexed, and weights to be here: what is not known yet is named, and the exit code is 1.

    What a short measurement of each encoder and student on your own images says is kept in runs/: the next plan comes sooner,
    and extract checks the disk by it.
    --disk and --deadline print the lines of unic-pipe.yaml that fit.
    """
    from rich.console import Console

    from unic_pipe.cli.show.plan import parse_bytes, parse_seconds, plan_lines
    from unic_pipe.pipeline.process.progress import ConsoleReporter

    inventory, reporter = open_inventory(config, overrides, rows), ConsoleReporter()
    reporter.say(LOOKING)
    from unic_pipe.stages.plan.stage import PlanOptions
    from unic_pipe.stages.plan.stage import plan as plan_stage

    options = PlanOptions(
        device=device or inventory.config.compute.device,
        throughput=throughput,
        disk=parse_bytes(disk) if disk is not None else None,
        deadline=parse_seconds(deadline) if deadline is not None else None,
        anew=anew,
    )
    check_students(inventory)
    report = plan_stage(inventory, options, _step_cost, reporter)
    if as_json:
        print_json(report)
    else:
        Console(highlight=False).print(plan_lines(report))
        if report.advice is not None:
            print(report.advice)
    return 1 if report.unknown else 0


def _step_cost(definition: StudentDefinition, device: str, whole: bool) -> StepCost:
    """Measure; what builds networks is only imported where one has to be measured."""
    from unic_pipe.stages.distill.measure.cost import step_cost

    return step_cost(definition, device, whole=whole)
