"""Running a stage as a command does: with signals, progress and provenance."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory


@contextmanager
def staged(inventory: Inventory, stage: str) -> Iterator[tuple[Reporter, Stop]]:
    """What a stage runs with; after a stop it says how to go on. The exit code is the stop's."""
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.run_log import RunLog

    with Stop() as stop, RunLog(inventory.folder, stage, ConsoleReporter()) as log:
        yield log, stop
        log.stopped(stop)
    if stop.requested:
        log.say(f"Stopped; finished work is kept. To go on: {shlex.join(['unic-pipe', *sys.argv[1:]])}")
