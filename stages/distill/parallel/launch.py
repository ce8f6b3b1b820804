"""`--devices N`: start N processes of this machine, pass on what they are told, and end when they have ended.

A process hears of a stop through a pipe, its standard input: one byte, the number of the signal. When the pipe closes
because this process was killed, that is a stop too. Free of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.stopping import Stop
from schemas.errors import StageError
from stages.distill.parallel.members import STORE

GRACE_S = 30.0
"""After one process has failed, the others have so long to notice."""
_POLL_S = 0.05

Process = subprocess.Popen[bytes]


def launch(count: int, arguments: Sequence[str], stop: Stop) -> int:
    """Run `unic-pipe ARGUMENTS` in `count` processes; their exit code.

    Raises:
        StageError: no process was left to say what happened.
    """
    with TemporaryDirectory(prefix="unic-pipe-") as folder:
        processes = [_start(rank, count, arguments, Path(folder) / "store") for rank in range(count)]
        try:
            code = _supervise(processes, stop)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if all(process.returncode < 0 for process in processes):
        raise StageError(
            f"All {count} processes of this training were killed. Finished checkpoints are kept.",
            "Run the same command again. The system's log says whether memory was short.",
        )
    return code


def _start(rank: int, count: int, arguments: Sequence[str], store: Path) -> Process:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {**os.environ, **{name: str(value) for name, value in numbers.items()}, STORE: str(store)}
    if sys.platform == "linux":
        # They talk to each other alone: not over the network, whatever the host's name means there.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return subprocess.Popen(
        # -P: a folder named `cli` where the command is typed is not ours.
        [sys.executable, "-P", "-m", "cli.main", *arguments],
        stdin=subprocess.PIPE,
        env=environment,
        # A terminal's Ctrl-C is for this process; it passes it on once.
        start_new_session=True,
    )


def _supervise(processes: Sequence[Process], stop: Stop) -> int:
    """Wait for all; the highest of their exit codes: what is wrong with the input (2) shows in one of them at least."""
    code, told, deadline = 0, False, float("inf")
    running = list(processes)
    while running:
        time.sleep(_POLL_S)
        if stop.signal is not None and not told:
            told = True
            for process in running:
                _tell(process, stop.signal)
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            if process.returncode:
                # Killed by a signal: the others say so, and end with 1.
                code, deadline = max(code, process.returncode, 1), min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
    return code


def _tell(process: Process, number: int) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(bytes([number]))
        process.stdin.flush()
