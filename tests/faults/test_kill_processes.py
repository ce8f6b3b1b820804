"""Several processes that train together, and one of them, or the one that started them, dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from unic_pipe.pipeline.workspace.documents import checkpoint_step

ENDLESS = ("--no-live-check", "--device", "cpu", "--set", "students.tiny.optimizer.epochs=2000")


def copy_of(work: Any, folder: Path) -> Any:
    shutil.copytree(work.folder, folder, symlinks=True)
    return type(work)(folder)


@pytest.mark.slow
def test_a_process_is_killed_in_a_step(ranks: Any, extracted: Any, tmp_path: Path) -> None:
    """The other one ends and says so once; the same command goes on, to the same bits as never killed."""
    killed = copy_of(extracted, tmp_path / "killed")
    for rank, step in ((1, 13), (0, 25)):
        codes = ranks(killed, 2, signals=[(rank, step, "SIGKILL")])
        assert codes[rank] == -signal.SIGKILL
        assert codes[1 - rank] == 1
        said = ranks.everything()
        assert said.count("One of the 2 processes of this training ended") == 1
        assert "Traceback" not in said
    assert ranks(killed, 2) == [0, 0], ranks.everything()
    # The checkpoint of an epoch is written while training goes on.
    assert min(step for _, step in ranks.learned()) in (11, 22)
    assert ranks(extracted, 2) == [0, 0], ranks.everything()
    mine, theirs = (work.content("students") for work in (killed, extracted))
    for name in theirs:
        if "/export/" in name or "/statistics/" in name:
            assert mine[name] == theirs[name], name


@pytest.mark.slow
def test_batch_norm_on_four_processes_killed_and_on_two(ranks: Any, extracted: Any, tmp_path: Path) -> None:
    """Weights and running statistics after 22 steps are those of one process."""
    cnn = ("architecture=test_efficientnet", "model_args={}", "ema=0.9", "optimizer.epochs=2")
    settings = [text for setting in cnn for text in ("--set", f"students.tiny.{setting}")]
    killed = copy_of(extracted, tmp_path / "killed")
    assert ranks(killed, 4, *settings, signals=[(2, 16, "SIGKILL")])[2] == -signal.SIGKILL
    assert ranks(killed, 2, *settings) == [0, 0], ranks.everything()
    assert min(step for _, step in ranks.learned()) == 11, "the checkpoint of the first epoch"
    assert ranks(extracted, 1, *settings) == [0], ranks.everything()
    mine, theirs = (load_file(work.student() / "export/model.safetensors") for work in (killed, extracted))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
    assert sum(name.endswith("running_var") for name in theirs) > 10


def begin(work: Any, log: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """`unic-pipe distill --devices 2` without an end, when it has written a checkpoint; with its processes."""
    command = [sys.executable, "-P", "-m", "unic_pipe", "distill", "--devices", "2", *ENDLESS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"}
    with log.open("wb") as output:
        launcher = subprocess.Popen(command, cwd=work.folder, stdout=output, stderr=output, env=environment)
    deadline = time.monotonic() + 150
    while not list(work.folder.glob("students/*/latest.json")):
        assert launcher.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return launcher, sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.pid)


def step_of(work: Any) -> int:
    (folder,) = work.folder.glob("students/tiny-*")
    return checkpoint_step(folder) or 0


@pytest.mark.slow
def test_the_launcher_is_told_to_stop_then_loses_a_process_then_dies(extracted: Any, tmp_path: Path) -> None:
    log, before = tmp_path / "log", 0
    for what in ("SIGTERM to the launcher", "SIGKILL to a process", "SIGKILL to the launcher"):
        for file in extracted.folder.glob("students/*/latest.json"):
            file.unlink()
        launcher, processes = begin(extracted, log)
        try:
            assert len(processes) == 2
            if what == "SIGKILL to a process":
                processes[1].kill()
            else:
                launcher.send_signal(getattr(signal, what.partition(" ")[0]))
            code = launcher.wait(60)
            _, alive = psutil.wait_procs(processes, timeout=60)
            assert not alive, what
        finally:
            for process in processes:
                if process.is_running():
                    process.kill()
            launcher.kill()
            launcher.wait()
        said = log.read_text()
        assert "Traceback" not in said
        if what == "SIGTERM to the launcher":
            assert code == 0, said
            assert "To go on: unic-pipe distill --devices 2" in said.replace("\n", " ")
        elif what == "SIGKILL to a process":
            assert code == 1, said
            assert said.count("error:") == 1, said
            assert "One of the 2 processes" in said
        else:
            # They hear that it is gone, and stop as if they were told to.
            assert "To go on: unic-pipe distill --devices 2" in said.replace("\n", " ")
        assert step_of(extracted) > before, "each went on from the checkpoint of the one before"
        before = step_of(extracted)
