"""The command `run`: every stage that has something left to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unic_pipe.cli.distill import distill_step
from unic_pipe.cli.evaluate import evaluate_step, show_results
from unic_pipe.cli.extract import extract_step
from unic_pipe.cli.options import (
    ConfigOption,
    DeviceOption,
    ForceOption,
    RestartOption,
    RowsOption,
    SchedulerOption,
    SetOption,
    StateOption,
    WorkersOption,
    open_inventory,
)
from unic_pipe.cli.running import Where, check_students, extract_options, staged
from unic_pipe.cli.status import print_state

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.pipeline.loggers import Tell
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.status import Artefact


EXAMPLES = ("run", "run --rows 1%", "run --set cache.codec=int8")


def run(
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    rows: RowsOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    restart: RestartOption = False,
    as_json: StateOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Index, extract, distill, evaluate, report: whatever is not fresh, in order.

    What is finished as unic-pipe.yaml says now is left alone, what was begun goes on, and what belongs to changed settings is
    made anew beside the old. A training that was begun with other settings is only given up with --restart.
    """
    from unic_pipe.pipeline.workspace.inventory import Inventory

    first = open_inventory(config, overrides, rows)
    where = Where(device, workers, scheduler)
    with staged(first, "run") as (reporter, stop), extract_options(first, where, reporter, stop, force) as options:
        run_everything(lambda: Inventory(first.workspace, rows), options, device, restart, reporter, stop)
    print_state(as_json, first, rows)
    return stop.exit_code


def run_everything(
    look: Callable[[], Inventory],
    options: ExtractOptions,
    device: str | None,
    restart: bool,
    reporter: Reporter,
    stop: Stop,
    table: bool = True,
    tell: Tell | None = None,
) -> None:
    """The four stages in order, each only if something of it is not fresh; the report at the end, and its table if that is
    wanted. `tell`: a function that gets what loggers get."""
    from unic_pipe.pipeline.loggers import wanted_loggers
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
        evaluate_step(inventory, options, reporter, stop, table, tell)

    check_students(first := look())
    wanted_loggers(first.config.loggers)
    run_stages(
        look,
        {
            "index": lambda i, a: index_stage(i, names(a), reporter, stop, optional=only_evaluated(i)),
            "extract": lambda i, a: extract_step(i, (), options, reporter, stop, to_train=True),
            "distill": lambda i, a: distill_step(i, students(i, a), device, restart, reporter, stop, tell=tell),
            "evaluate": lambda i, a: evaluation(i),
        },
        reporter,
        stop,
    )
    if not shown and not stop.requested:
        inventory = look()
        if records := records_in_force(inventory):
            show_results(inventory, records, reporter, table)
