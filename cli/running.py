"""What commands that run stages share: signals, progress, provenance, and where frozen encoders run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unic_pipe.pipeline.extraction.parts import parse_part
from unic_pipe.schemas.errors import UnicPipeError, UserError

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory

LOOKING = "looking at students, samples, weights and what is there already"
"""Said first: importing PyTorch and looking at every artefact may take a while."""


@contextmanager
def staged(
    inventory: Inventory, stage: str, reporter: Reporter | None = None, call: str | None = None
) -> Iterator[tuple[Reporter, Stop]]:
    """What a stage runs with; after a stop it says how to go on. The exit code is the stop's.

    `reporter`: by default the console's; `call`: what was typed, by default the command line.
    """
    from unic_pipe.pipeline.process.memory import give_freed_memory_back
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.run_log import RunLog
    from unic_pipe.pipeline.workspace.seeds import as_written

    typed = call or shlex.join(["unic-pipe", *sys.argv[1:]])
    with Stop() as stop, RunLog(inventory.folder, stage, reporter or ConsoleReporter(), typed) as log:
        try:
            yield log, stop
        except UnicPipeError as error:
            as_written(error, inventory.workspace.seeded)
            raise
        finally:
            give_freed_memory_back()
        log.stopped(stop)
    if stop.requested:
        log.say(f"Stopped; finished work is kept. To go on: {typed}")


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
    reporter.say(LOOKING)
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


def check_students(inventory: Inventory, say: Callable[[str], None] | None = None) -> None:
    """Refuse to begin what a student's settings would end. PyTorch is only needed for networks that nobody has built yet.

    `say`: told of students with fewer rows than a batch, which are no reason not to extract; None: refused as well.
    Raises UserError: what is wrong with the first of them.
    """
    from unic_pipe.pipeline.workspace.seeds import as_written
    from unic_pipe.pipeline.workspace.trainable import refuse_unbuildable, too_few_rows, unjudged

    found = {}
    if unjudged(inventory):
        from unic_pipe.stages.distill.blueprint import judge_students

        found = judge_students(inventory)
    for name in inventory.config.students:
        try:
            refuse_unbuildable(inventory, name, found)
        except UserError as error:
            raise as_written(error, inventory.workspace.seeded) from None
        if (few := too_few_rows(inventory, name)) is None:
            continue
        as_written(few, inventory.workspace.seeded)
        if say is None:
            raise few
        say(f"{few.message} Features are extracted all the same. {few.hint}")


def say_lacking(inventory: Inventory, reporter: Reporter) -> None:
    """Say which benchmarks will be skipped as they are, before hours go into what they would score."""
    from unic_pipe.pipeline.workspace.evaluation_plans import lacking

    with suppress(UserError):  # weights that are not here: the stage that needs them says so
        for name, why in lacking(inventory).items():
            reporter.say(f"benchmark {name} will be skipped as it is: {why}")
