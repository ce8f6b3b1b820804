"""A process that has imported everything once, and forks the processes of a training for every request.

Reads one JSON object per line: `command` (of `unic-pipe`), `folder` (to run it in), `size` (how many processes), `out` (a
folder for what rank R prints, `R.log`, and for the rows that it trained on, `R.rows`: one JSON list per part of a step).
`signals`: `[rank, step, signal]` lists; the rank sends itself the signal when it is about to learn that step.
Answers with the exit codes (negative for a signal) by rank.

Nothing here may start a thread: a forked process has only the thread that forked it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import torch.distributed.fsdp  # noqa: E402
import torch.utils.tensorboard  # noqa: E402

import unic_pipe.cli.main  # noqa: E402
import unic_pipe.stages.distill.stage  # noqa: E402
import unic_pipe.stages.indexing  # noqa: E402
from unic_pipe.stages.distill.data.batches import Batch  # noqa: E402
from unic_pipe.stages.distill.parallel.members import STORE  # noqa: E402
from unic_pipe.stages.distill.training import Training  # noqa: E402

LIMIT_S = 120.0


def watch(rank: int, request: dict[str, Any]) -> None:
    """Write down what is learned, and send the signals."""
    learn, rows = Training.learn, open(Path(request["out"]) / f"{rank}.rows", "a")  # noqa: SIM115
    signals = {step: getattr(signal, name) for who, step, name in request.get("signals", []) if who == rank}

    def watched(self: Training, batch: Batch) -> None:
        if self.step in signals:
            os.kill(os.getpid(), signals.pop(self.step))
        plan = batch.plan
        rows.write(json.dumps([self.name, self.step, plan.view, plan.rows_B.tolist()]) + "\n")
        rows.flush()
        learn(self, batch)

    Training.learn = watched  # type: ignore[method-assign]


def be(rank: int, stdin: int, request: dict[str, Any]) -> None:
    """Be one of the processes. Never returns."""
    log = os.open(Path(request["out"]) / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(stdin, 0)
    os.chdir(request["folder"])
    size = request["size"]
    if size > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in numbers.items()})
        os.environ[STORE] = str(Path(request["out"]) / "store")
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.argv = ["unic-pipe", *request["command"]]
    watch(rank, request)
    code = 70
    try:
        unic_pipe.cli.main.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(request: dict[str, Any]) -> list[int]:
    """Fork, wait."""
    (Path(request["out"]) / "store").unlink(missing_ok=True)
    stdin, keep = os.pipe()
    children = []
    for rank in range(request["size"]):
        child = os.fork()
        if child == 0:
            os.close(keep)
            be(rank, stdin, request)
        children.append(child)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    os.close(stdin)
    os.close(keep)
    return [codes[child] for child in children]


def main() -> None:
    """Serve until the input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
