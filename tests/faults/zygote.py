"""A process that has imported everything once, and forks itself for every command that it is asked to run.

Reads one JSON object per line: `command` (of `unic-pipe`), `folder` (to run it in), `log` (file for its output). The forked
process is sent a `signal` (SIGKILL by default) `after_s` seconds after it began, or sends it to itself right `before` the
`nth` change of that kind that it makes to files in the folder. Answers with one JSON object: `status` (exit code, negative
for a signal) and `seconds`; the kinds of all changes are listed in the file `trace`, if one is named.

Nothing here may start a thread: a forked process has only the thread that forked it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import unic_pipe.cli.main  # noqa: E402
import unic_pipe.pipeline.cache.commit  # noqa: E402
import unic_pipe.pipeline.extraction.blocks  # noqa: E402
import unic_pipe.pipeline.extraction.run  # noqa: E402
import unic_pipe.pipeline.views.render  # noqa: E402
import unic_pipe.stages.distill.stage  # noqa: E402
import unic_pipe.stages.extract  # noqa: E402
from unic_pipe.pipeline.workspace.configuration import load_workspace  # noqa: E402
from unic_pipe.pipeline.workspace.inventory import Inventory  # noqa: E402

CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate"}


def kind_of(change: str, path: str) -> str | None:
    """What sort of change this is, without the names that tell one file from another; None for folders and for `runs/`."""
    if path.startswith("runs"):
        return None
    path = re.sub(r"[\w.-]*@\d+-\d+", "TEMPORARY", path)
    path = re.sub(r"(train|val)(-lite[01](-center)?)?(-[0-9a-f]{8})?|tiny(-[0-9a-f]{8})?", "NAME", path)
    path = re.sub(r"(probes/view-...)-[0-9a-f]+", r"\1-KEY", path)
    path = re.sub(r"\b(cls|patch|lite[01])\b", "TOKEN", path)
    return f"{change} {re.sub(r'[0-9]+(/[0-9]+)*', 'N', path)}"


def watch(request: dict[str, Any]) -> None:
    """Note every change that is about to be made below the folder; right before a chosen one, send the signal."""
    folder, before = request["folder"] + "/", request.get("before")
    trace = os.open(request["trace"], os.O_WRONLY | os.O_CREAT, 0o644)
    lock = threading.RLock()
    left = request.get("nth", 1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES:
            return
        paths = [str(a) for a in arguments[:2] if isinstance(a, str | Path) and str(a).startswith(folder)]
        kind = kind_of(event, paths[-1].removeprefix(folder)) if paths else None
        if kind is None:
            return
        with lock:
            os.write(trace, f"{kind}\n".encode())
            left -= kind == before
            hit = kind == before and left == 0
        if hit:
            os.kill(os.getpid(), signal_of(request))

    sys.addaudithook(hook)


def signal_of(request: dict[str, Any]) -> int:
    return int(getattr(signal, request.get("signal", "SIGKILL")))


def run(request: dict[str, Any]) -> None:
    """Be the command. Never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.chdir(request["folder"])
    sys.argv = ["unic-pipe", *request["command"]]
    watch(request)
    code = 70
    try:
        unic_pipe.cli.main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, interrupt, wait."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        run(request)
    if "after_s" in request:
        deadline = started + request["after_s"]
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal_of(request))
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds}


def main(folder: str) -> None:
    """Load the teachers of a workspace, then serve until the input ends."""
    inventory = Inventory(load_workspace(Path(folder)))
    for name in inventory.config.teachers:
        unic_pipe.pipeline.extraction.forward.loaded_encoder(
            inventory.teacher(name), "cpu", inventory.config.compute.channels_last
        )
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
