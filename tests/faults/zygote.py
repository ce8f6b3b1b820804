"""A process that has imported everything once and forks a copy of itself for every command that it is asked to run.

Reads one JSON object per line: `{"command": [...], "log": PATH}` with at most one of `after_s` and `after_events`, and
`signal` (SIGKILL by default). The forked process runs `unic-pipe COMMAND`, as from a shell. It is sent the signal `after_s`
seconds after it began, or sends it to itself right before its `after_events`-th change of a file or folder in `folder`.
Answers with one JSON object: `status` (exit code, negative for a signal), `seconds`, `events`.

Nothing here may start a thread: a forked process has only the thread that forked it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import cli.main  # noqa: E402
import pipeline.cache.commit  # noqa: E402
import pipeline.engine  # noqa: E402
import pipeline.extraction  # noqa: E402
import pipeline.views.render  # noqa: E402
import stages.distill.stage  # noqa: E402
import stages.extract  # noqa: E402
import stages.indexing  # noqa: E402
from pipeline.configuration import load_workspace  # noqa: E402
from pipeline.inventory import Inventory  # noqa: E402

CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def count_changes(folder: str, events: Any, at: int | None, number: int) -> None:
    """Count what is about to change below `folder`; before change number `at` the process sends itself a signal."""
    lock = threading.RLock()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "xw"):
            return
        if not any(str(a).startswith(folder) for a in arguments if isinstance(a, str | Path)):
            return
        with lock:
            events.value += 1
            hit = events.value == at
        if hit:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def run(request: dict[str, Any], events: Any) -> None:
    """Be the command. Never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.chdir(request["folder"])
    sys.argv = ["unic-pipe", *request["command"]]
    number = getattr(signal, request.get("signal", "SIGKILL"))
    count_changes(request["folder"] + "/", events, request.get("after_events"), number)
    code = 70
    try:
        cli.main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, interrupt, wait."""
    events = RawValue("l", 0)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        run(request, events)
    if "after_s" in request:
        deadline = started + request["after_s"]
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        else:
            os.kill(child, getattr(signal, request.get("signal", "SIGKILL")))
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "events": events.value}


def main(folder: str) -> None:
    """Load the teachers of a workspace, then serve until the input ends."""
    inventory = Inventory(load_workspace(Path(folder)))
    for name in inventory.config.teachers:
        pipeline.engine._encoder(inventory.teacher(name), "cpu", inventory.config.compute.channels_last)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
