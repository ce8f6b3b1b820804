"""The commands that make artefacts: index, extract, distill, evaluate, run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    ForceOption,
    PartOption,
    RowsOption,
    SchedulerOption,
    SetOption,
    WorkersOption,
    add_command,
    open_inventory,
)
from unic_pipe.cli.running import staged
from unic_pipe.cli.train import distill, distill_step
from unic_pipe.pipeline.extraction.parts import parse_part
from unic_pipe.schemas.errors import UserError

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.evaluations import ResultRecord
    from unic_pipe.schemas.status import Artefact


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Stages"
    add_command(app, panel, run, "run", "run --rows 1%", "run --set cache.codec=int8")
    add_command(app, panel, extract, "extract --teacher dino", "extract --workers 4", "extract --part 1/8")
    add_command(
        app,
        panel,
        distill,
        "distill",
        "distill --student hot --set students.main.optimizer.lr=1e-3",
        "distill --ablation",
        "distill --devices 8",
    )
    add_command(
        app, panel, evaluate, "evaluate", "evaluate --encoder unic.pth --encoder rival=timm:vit_small_patch16_224.dino"
    )
    add_command(app, panel, index, "index", "index train val")


def index(
    datasets: Annotated[list[str] | None, typer.Argument(help="Which (default: all that are used).")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Index samples: where each image is, a hash of its bytes, its label.

    The other stages do this by themselves for what they need. New tars and images are added as new rows.
    """
    from unic_pipe.pipeline.workspace.status import only_evaluated, used_datasets
    from unic_pipe.stages.indexing import index as index_stage

    inventory = open_inventory(config, overrides)
    with staged(inventory, "index") as (reporter, stop):
        index_stage(inventory, datasets or used_datasets(inventory), reporter, stop, optional=only_evaluated(inventory))
        if inventory.refused:  # of several, the first: the others' data are indexed all the same
            raise next(iter(inventory.refused.values()))
    return stop.exit_code


def extract(
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", "-t", metavar="NAME", help="Which (repeatable; default: all).", show_default=False),
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
    return stop.exit_code


def evaluate(
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            metavar="[NAME=]FILE",
            help="Probe this one too: a weights file, a folder, timm:NAME (repeatable).",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
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
    return stop.exit_code


def run(
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    rows: RowsOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", metavar=NO_VALUE, help="Train changed students under their names; old runs are kept."
        ),
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Index, extract, distill, evaluate, report: whatever is not fresh, in order."""
    from unic_pipe.pipeline.workspace.inventory import Inventory

    first = open_inventory(config, overrides, rows)
    where = Where(device, workers, scheduler)
    with staged(first, "run") as (reporter, stop), extract_options(first, where, reporter, stop, force) as options:
        run_everything(lambda: Inventory(first.workspace, rows), options, device, restart, reporter, stop)
    return stop.exit_code


def run_everything(
    look: Callable[[], Inventory],
    options: ExtractOptions,
    device: str | None,
    restart: bool,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """The four stages in order, each only if something of it is not fresh; the results at the end."""
    from unic_pipe.pipeline.workspace.status import only_evaluated
    from unic_pipe.stages.indexing import index as index_stage
    from unic_pipe.stages.report.stage import records_in_force
    from unic_pipe.stages.run import run as run_stages

    shown = False

    def names(artefacts: Sequence[Artefact]) -> list[str]:
        return [a.name.rpartition("/")[2] for a in artefacts]

    def students(inventory: Inventory, artefacts: Sequence[Artefact]) -> list[str]:
        labels = {inventory.student_name(name): name for name in inventory.config.students}
        return [labels[label] for label in names(artefacts)]

    def evaluation(inventory: Inventory) -> None:
        nonlocal shown
        shown = True
        evaluate_step(inventory, options, reporter, stop)

    run_stages(
        look,
        {
            "index": lambda i, a: index_stage(i, names(a), reporter, stop, optional=only_evaluated(i)),
            "extract": lambda i, a: extract_step(i, (), options, reporter, stop),
            "distill": lambda i, a: distill_step(i, students(i, a), device, restart, reporter, stop),
            "evaluate": lambda i, a: evaluation(i),
        },
        reporter,
        stop,
    )
    if not shown and not stop.requested:
        inventory = look()
        if records := records_in_force(inventory):
            show_results(inventory, records, reporter)


def extract_step(
    inventory: Inventory, teachers: Sequence[str], options: ExtractOptions, reporter: Reporter, stop: Stop
) -> None:
    """Index what extraction needs, then extract."""
    from unic_pipe.pipeline.workspace.status import training_datasets
    from unic_pipe.stages.extract import extract as extract_stage
    from unic_pipe.stages.indexing import index as index_stage

    for name in teachers:
        inventory.teacher(name)
    index_stage(inventory, training_datasets(inventory), reporter, stop)
    if not stop.requested:
        extract_stage(inventory, teachers, options, reporter, stop)


def evaluate_step(inventory: Inventory, options: ExtractOptions, reporter: Reporter, stop: Stop) -> None:
    """Index the benchmarks, probe, write the report, show the table."""
    from unic_pipe.pipeline.workspace.status import benchmark_datasets
    from unic_pipe.stages.evaluate.run import failures
    from unic_pipe.stages.evaluate.stage import evaluate_all, skipped_error
    from unic_pipe.stages.indexing import index as index_stage

    datasets = benchmark_datasets(inventory)
    index_stage(inventory, datasets, reporter, stop, optional=datasets)
    records = [] if stop.requested else evaluate_all(inventory, options, reporter, stop)
    if stop.requested:
        return
    show_results(inventory, records, reporter)
    failed = failures(records) or skipped_error(inventory)
    if failed is not None:
        raise failed


def show_results(inventory: Inventory, records: Sequence[ResultRecord], reporter: Reporter) -> None:
    """Write the report (an equal one is left alone), show its main table, and say where it is."""
    from rich.console import Console

    from unic_pipe.stages.report.stage import report

    path, table = report(inventory, records)
    Console(stderr=True, highlight=False).print(table)
    reporter.say(f"report: {path}")


@dataclass(frozen=True)
class Where:
    """Where frozen encoders run, as the command line says; refused here if that makes no sense."""

    device: str | None = None
    workers: int = 0
    scheduler: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.workers and self.scheduler:
            raise UserError(
                "--workers starts processes here, --scheduler uses those of a Dask cluster.", "Give one of the two."
            )
        if self.part is not None:
            parse_part(self.part)


@contextmanager
def extract_options(
    inventory: Inventory, where: Where, reporter: Reporter, stop: Stop, force: bool = False, batch: int | None = None
) -> Iterator[ExtractOptions]:
    """Options of the command line over those of the configuration, with one executor for the whole command."""
    from unic_pipe.pipeline.extraction.executors import Executor, Threads
    from unic_pipe.pipeline.extraction.run import ExtractOptions

    device = where.device or inventory.config.compute.device
    executor: Executor = Threads()
    if where.workers or where.scheduler:
        from unic_pipe.pipeline.extraction.dask import Processes, Scheduler

        if where.scheduler:
            executor = Scheduler(where.scheduler, stop, reporter.say)
        else:
            executor = Processes(where.workers, device, stop, reporter.say)
    part = parse_part(where.part) if where.part is not None else None
    with executor:
        yield ExtractOptions(device=device, executor=executor, part=part, force=force, batch=batch)
