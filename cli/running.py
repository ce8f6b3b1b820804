"""Running a stage as a command does: with signals, progress and provenance."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.inventory import Inventory
    from pipeline.progress import Reporter
    from pipeline.stopping import Stop


def staged(inventory: Inventory, stage: str, work: Callable[[Reporter, Stop], None]) -> int:
    """Run a stage with signals, progress and provenance; the exit code."""
    from pipeline.progress import ConsoleReporter
    from pipeline.runs import RunLog
    from pipeline.stopping import Stop

    with Stop() as stop, RunLog(inventory.folder, stage, ConsoleReporter()) as log:
        work(log, stop)
        log.stopped(stop)
    if stop.requested:
        log.say(f"Stopped; finished work is kept. To go on: {shlex.join(['unic-pipe', *sys.argv[1:]])}")
        return stop.exit_code
    return 0
