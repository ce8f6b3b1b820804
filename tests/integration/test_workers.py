"""Who does the work changes nothing: threads, one worker process, or two of which one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

TRAIN_ONLY = "distill.validation=null"


def workers() -> list[int]:
    """Process numbers of the Dask workers that this process has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in command:
            found.append(child.pid)
    return found


def assert_same_bytes(work: Any, template: Any) -> None:
    mine, theirs = work.content("samples", "features"), template.content("samples", "features")
    theirs = {name: data for name, data in theirs.items() if name.split("/")[1].startswith("train")}
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


@pytest.mark.slow
def test_one_worker_process_and_ctrl_c(raw: Any, extracted_template: Any) -> None:
    """A terminal sends SIGINT to the workers too; the blocks in flight are finished all the same."""
    program = Path(sys.executable).with_name("unic-pipe")
    process = subprocess.Popen(
        [program, "extract", "--workers", "1", "--set", TRAIN_ONLY],
        cwd=raw.folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(raw.folder.glob("features/*/records/*/*/*.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, error
    assert "To go on: unic-pipe extract --workers 1" in error
    assert "Traceback" not in error
    for pointer in ("train-lite0", "train-lite1"):
        assert not list((raw.features(pointer) / "records").rglob("*.json")), "what was finished is folded"
    extraction = raw.extract(TRAIN_ONLY)["train"]
    assert (extraction.complete, extraction.before >= 8) == (True, True)
    assert_same_bytes(raw, extracted_template)


@pytest.mark.slow
def test_two_worker_processes_of_which_one_is_killed(raw: Any, extracted_template: Any) -> None:
    """The dead worker's blocks go to another one; what it had committed is still there.

    All passes of a command share the processes: two, and the one that took the place of the dead.
    """
    killed: list[int] = []
    seen: set[int] = set()

    def kill(done: int) -> None:
        running = workers()
        seen.update(running)
        if running and not killed:
            assert done < 360
            killed.append(running[0])
            os.kill(running[0], signal.SIGKILL)

    passes = raw.extract(workers=2, on_advance=kill)
    assert killed
    assert len(seen) <= 3
    assert [(p.done, p.before) for p in passes.values()] == [(p.total, 0) for p in passes.values()]
    assert len(passes) == 2
    assert raw.content("samples", "features") == extracted_template.content("samples", "features")
    assert workers() == []
