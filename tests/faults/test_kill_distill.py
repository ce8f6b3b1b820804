"""SIGKILL, SIGTERM and Ctrl-C in the middle of `unic-pipe distill`: the same student in the end, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import checkpoint_step
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics

MOMENTS = 8
"""Working folders in which distill is killed, at moments spread over an uninterrupted training, and interrupted again."""


@pytest.fixture(scope="module")
def whole(zygote: Any, extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """An uninterrupted training: (working folder, how it went)."""
    work = copy_of(extracted_template, tmp_path_factory.mktemp("whole") / "work")
    ended = zygote(work.folder, "distill")
    assert ended.status == 0, zygote.output()
    return work, ended


def copy_of(work: Any, folder: Path) -> Any:
    shutil.copytree(work.folder, folder, symlinks=True)
    return type(work)(folder)


def content(work: Any) -> dict[str, Any]:
    """What must be equal after any history. Of the metrics, all but the time that steps waited for data."""
    found: dict[str, Any] = work.content("students")
    # The last checkpoint; which older ones are there depends on where a stop wrote one.
    for name in sorted(name for name in found if "/checkpoints/" in name)[:-2]:
        del found[name]
    table = next(name for name in found if name.endswith("metrics.parquet"))
    found[table] = read_metrics(LocalStore(work.student()))
    for row in found[table]:
        for name in TIMINGS:
            row.pop(name, None)
    return found


def finish(zygote: Any, work: Any, whole: Any) -> None:
    assert zygote(work.folder, "distill").status == 0, zygote.output()
    mine, theirs = content(work), content(whole)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


@pytest.mark.slow
def test_interrupted_at_any_moment(
    zygote: Any, extracted_template: Any, whole: tuple[Any, Any], tmp_path: Path
) -> None:
    random, interrupted_again = np.random.default_rng(0), 0
    for moment in range(MOMENTS):
        work = copy_of(extracted_template, tmp_path / str(moment))
        seconds = whole[1].seconds * (moment + random.random()) / MOMENTS
        while not zygote(work.folder, "distill", after_s=seconds).killed:
            # The uninterrupted training met a busier machine: this one was at its end before.
            seconds *= 0.7
            work = copy_of(extracted_template, tmp_path / f"{moment}-{seconds}")
        how = ("SIGKILL", "SIGTERM")[moment % 2]
        ended = zygote(work.folder, "distill", after_s=seconds * random.uniform(0.5, 1), signal=how)
        # Before it listens to signals, SIGTERM ends it at once.
        assert ended.status in (0, -signal.SIGKILL, -signal.SIGTERM), zygote.output()
        interrupted_again += not (work.folder / "students" / "tiny").exists()
        finish(zygote, work, whole[0])
    assert interrupted_again > 0


@pytest.mark.slow
def test_killed_before_every_kind_of_change(
    zygote: Any, extracted_template: Any, whole: tuple[Any, Any], tmp_path: Path
) -> None:
    """A student dies again and again, before a file of each kind is linked, moved or removed for the first time."""
    kinds = list(dict.fromkeys(whole[1].changes))
    assert len(kinds) >= 13
    for expected in ("statistics", "metrics", "step-N.pt", "latest", "os.remove students/NAME/checkpoints", "export"):
        assert any(expected in kind for kind in kinds)
    work = copy_of(extracted_template, tmp_path / "work")
    for number, kind in enumerate(kinds):
        if not zygote(work.folder, "distill", before=kind).killed:
            # That was done by a run that died later, and this one has come to the end.
            finish(zygote, work, whole[0])
            work = copy_of(extracted_template, tmp_path / str(number))
            assert zygote(work.folder, "distill", before=kind).killed
    finish(zygote, work, whole[0])


def wait_for_checkpoint(work: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(work.folder.glob("students/*/latest.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_polite_stop(extracted: Any, number: int, code: int) -> None:
    """The installed command: what is in flight is finished, a checkpoint is written, and the next command is printed."""
    command = ["unic-pipe", "distill", "--set", "students.tiny.optimizer.epochs=2000"]
    program = Path(sys.executable).with_name(command[0])
    process = subprocess.Popen(
        [program, *command[1:]],
        cwd=extracted.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    try:
        wait_for_checkpoint(extracted, process)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, error
    assert f"To go on: {' '.join(command)}" in error.replace("\n", " ")
    assert "Traceback" not in error
    assert out == ""
    (folder,) = extracted.folder.glob("students/tiny-*")
    step = checkpoint_step(folder)
    assert step
    student = extracted.artefact("students/tiny", *command[3:])
    assert (student.state, student.done) == ("partial", step)
    assert [row["step"] for row in read_metrics(LocalStore(folder)) if "loss" in row][-1] == step // 3 * 3
