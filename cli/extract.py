"""The command `extract`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.completing import teachers
from unic_pipe.cli.options import (
    ConfigOption,
    DeviceOption,
    ForceOption,
    PartOption,
    RowsOption,
    SchedulerOption,
    SetOption,
    StateOption,
    WorkersOption,
    open_inventory,
)
from unic_pipe.cli.running import Where, check_students, extract_options, say_lacking, staged
from unic_pipe.cli.status import print_state
from unic_pipe.schemas.errors import NotFinishedError

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory


EXAMPLES = ("extract --teacher dino", "extract --workers 4", "extract --part 1/8")


def extract(
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher", "-t", metavar="NAME", help="Which (repeatable; default: all).", autocompletion=teachers
        ),
    ] = None,
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    part: PartOption = None,
    rows: RowsOption = None,
    device: DeviceOption = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="A smaller batch than configured, after running out of memory."),
    ] = None,
    force: ForceOption = False,
    as_json: StateOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Run frozen teachers over the views of every sample, once, and cache the features.

    Only what is missing is extracted. Killed at any moment, it loses what was in flight and nothing else.
    """
    inventory = open_inventory(config, overrides, rows)
    where = Where(device, workers, scheduler, part)
    with (
        staged(inventory, "extract") as (reporter, stop),
        extract_options(inventory, where, reporter, stop, force, batch) as options,
    ):
        extract_step(inventory, teacher or (), options, reporter, stop)
    print_state(as_json, inventory, rows)
    return stop.exit_code


def extract_step(
    inventory: Inventory,
    teachers: Sequence[str],
    options: ExtractOptions,
    reporter: Reporter,
    stop: Stop,
    to_train: bool = False,
) -> None:
    """Index what extraction needs, then extract. `to_train`: only if students can be trained on it."""
    from unic_pipe.pipeline.workspace.status import training_datasets
    from unic_pipe.stages.extract import extract as extract_stage
    from unic_pipe.stages.indexing import index as index_stage

    for name in teachers or inventory.config.teachers:
        with nullcontext() if teachers else suppress(NotFinishedError):  # those of a chain are trained first
            inventory.teacher(name)
    check_students(inventory, lambda text: None)
    index_stage(inventory, training_datasets(inventory), reporter, stop)
    if not stop.requested:
        check_students(inventory, None if to_train else reporter.say)  # now the rows are counted
        say_lacking(inventory, reporter)
        extract_stage(inventory, teachers, options, reporter, stop)
