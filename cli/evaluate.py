"""The command `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import (
    ConfigOption,
    DeviceOption,
    ForceOption,
    SchedulerOption,
    SetOption,
    StateOption,
    WorkersOption,
    open_inventory,
)
from unic_pipe.cli.running import Where, extract_options, staged
from unic_pipe.cli.status import print_state

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.pipeline.loggers import Maker, Tell
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.evaluations import ResultRecord


EXAMPLES = ("evaluate", "evaluate --encoder unic.pth --encoder rival=timm:vit_small_patch16_224.dino")


def evaluate(
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            metavar="[NAME=]FILE",
            help="Probe this one too: a weights file, a folder, timm:NAME (repeatable).",
        ),
    ] = None,
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    as_json: StateOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Probe every finished student and every teacher on the benchmarks; write the report.

    --encoder adds others for this time: an official UNIC checkpoint, any timm model, a weights file, an export folder.
    Those under evaluate.encoders in the configuration are always there.
    """
    from unic_pipe.stages.evaluate.named import with_encoders

    inventory = with_encoders(open_inventory(config, overrides), encoder or ())
    where = Where(device, workers, scheduler)
    with (
        staged(inventory, "evaluate") as (reporter, stop),
        extract_options(inventory, where, reporter, stop, force) as options,
    ):
        evaluate_step(inventory, options, reporter, stop)
    print_state(as_json, inventory)
    return stop.exit_code


def evaluate_step(
    inventory: Inventory,
    options: ExtractOptions,
    reporter: Reporter,
    stop: Stop,
    table: bool = True,
    tell: Tell | None = None,
) -> list[ResultRecord]:
    """Index the benchmarks, probe, write the report, show its table if that is wanted, send both to loggers; the results.

    `tell`: a function that gets what loggers get.
    """
    from unic_pipe.pipeline.loggers import wanted_loggers
    from unic_pipe.pipeline.workspace.status import benchmark_datasets
    from unic_pipe.stages.evaluate.run import failures
    from unic_pipe.stages.evaluate.stage import evaluate_all, skipped_error
    from unic_pipe.stages.indexing import index as index_stage

    loggers = wanted_loggers(inventory.config.loggers, tell)
    datasets = benchmark_datasets(inventory)
    index_stage(inventory, datasets, reporter, stop, optional=datasets)
    records = [] if stop.requested else evaluate_all(inventory, options, reporter, stop)
    if stop.requested:
        return records
    page = show_results(inventory, records, reporter, table)
    if loggers:
        send_results(inventory, records, page, loggers, reporter)
    failed = failures(records) or skipped_error(inventory)
    if failed is not None:
        raise failed
    return records


def show_results(inventory: Inventory, records: Sequence[ResultRecord], reporter: Reporter, table: bool = True) -> Path:
    """Write the report (an equal one is left alone), show its main table if that is wanted, and say where it is."""
    from unic_pipe.pipeline.process.progress import messages
    from unic_pipe.stages.report.stage import report

    path, main = report(inventory, records)
    if table:
        messages().print(main)
    reporter.say(f"report: {path}")
    return path


def send_results(
    inventory: Inventory, records: Sequence[ResultRecord], page: Path, loggers: Mapping[str, Maker], reporter: Reporter
) -> None:
    """Send tables, pictures and the report to loggers, as a run for every table of scores that differs."""
    from unic_pipe.pipeline.loggers import Run, send
    from unic_pipe.schemas.base import json_digest, short
    from unic_pipe.stages.report.stage import logged_results

    folder = page.parent
    values = logged_results(inventory, records, page)
    shown = short(json_digest([record.model_dump(mode="json") for record in records]))
    settings = inventory.config.evaluate.model_dump(mode="json")
    run = Run("evaluation", f"evaluation {folder.name}", f"{folder.name}-{shown}", folder, inventory.folder, settings)
    send(run, [{"step": 0, **values}], loggers, reporter.say)
