"""Running a stage as a command does: with signals, progress and provenance."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.inventory import Inventory
    from pipeline.progress import Reporter
    from pipeline.stopping import Stop


@contextmanager
def staged(inventory: Inventory, stage: str) -> Iterator[tuple[Reporter, Stop]]:
    """What a stage runs with; after a stop it says how to go on. The exit code is the stop's."""
    from pipeline.progress import ConsoleReporter
    from pipeline.runs import RunLog
    from pipeline.stopping import Stop

    with Stop() as stop, RunLog(inventory.folder, stage, ConsoleReporter()) as log:
        yield log, stop
        log.stopped(stop)
    if stop.requested:
        log.say(f"Stopped; finished work is kept. To go on: {shlex.join(['unic-pipe', *sys.argv[1:]])}")
