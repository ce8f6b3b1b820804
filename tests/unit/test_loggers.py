"""Loggers that take the rows of a training: what they get, after kills and failures, and what is refused beforehand.

The logger is one of an installed package: Weights & Biases, MLflow and trackio themselves are in test_real_loggers.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from distill_world import World, assert_same_student, student_folder

from unic_pipe.pipeline.loggers import Run, sender, wanted_loggers
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.loggers import LoggedRun, LoggersConfig
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics


class Memory:
    """A logger that keeps what it gets, and knows what it has only if it is asked to."""

    runs: ClassVar[dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    knows = False
    fails = 0
    """At how many more rows it fails."""
    ended = 0

    def begin(self, run: Run) -> int | None:
        self.rows = Memory.runs.setdefault(run.id, [])
        return self.rows[-1][0] if Memory.knows and self.rows else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if Memory.fails:
            Memory.fails -= 1
            raise ConnectionError("no\n  network")
        self.rows.append((step, dict(values)))

    def end(self) -> None:
        Memory.ended += 1


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Memory]]:
    Memory.runs.clear()
    Memory.knows, Memory.fails, Memory.ended = False, 0, 0
    monkeypatch.setattr(sender, "RETRY_S", 0.01)
    yield Memory
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("logger ")]


def merged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.parquet has, by step."""
    steps: dict[int, dict[str, float]] = {}
    for row in read_metrics(LocalStore(folder)):
        steps.setdefault(int(row["step"]), {}).update({k: v for k, v in row.items() if k != "step"})
    return list(steps.items())


def untimed(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {k: v for k, v in values.items() if k not in TIMINGS}) for step, values in rows]


def test_what_is_sent_is_what_the_metrics_have(world: World, memory: type[Memory]) -> None:
    assert world.distill(validation=True, loggers={"memory": memory})
    [(name, rows)] = memory.runs.items()
    assert name.startswith(f"{student_folder(world).name}-")
    assert rows == merged(student_folder(world))
    assert [step for step, _ in rows] == [2, 4, 6, 8, 10, 12]
    assert sum("val/loss" in values for _, values in rows) == 3
    assert memory.ended == 1


@pytest.mark.parametrize("knows", [False, True])
def test_a_training_that_was_killed_continues_its_run(world: World, memory: type[Memory], knows: bool) -> None:
    """It goes on from step 4, and computes again what was sent of step 6."""
    memory.knows = knows
    assert not world.distill(stop_after=7, loggers={"memory": memory})
    assert [step for [rows] in [memory.runs.values()] for step, _ in rows] == [2, 4, 6]
    newest = max(world.folder.glob("students/*/checkpoints/*.pt"))
    newest.write_bytes(newest.read_bytes()[:500])
    assert world.distill(loggers={"memory": memory})
    [rows] = memory.runs.values()
    assert untimed(rows) == untimed(merged(student_folder(world)))


def test_what_was_measured_before_there_was_a_logger_is_sent_first(world: World, memory: type[Memory]) -> None:
    assert not world.distill(stop_after=5)
    assert world.distill(loggers={"memory": memory, "other": memory})
    assert len(memory.runs) == 2
    assert all(rows == merged(student_folder(world)) for rows in memory.runs.values())


def test_a_finished_student_is_sent_if_it_was_not(world: World, memory: type[Memory]) -> None:
    assert world.distill(validation=True)
    for _ in range(2):
        assert world.distill(validation=True, loggers={"memory": memory})
    assert list(memory.runs.values()) == [merged(student_folder(world))]
    assert memory.ended == 1


def test_a_failure_is_said_once_and_what_was_missed_is_sent(world: World, memory: type[Memory]) -> None:
    memory.fails = 3
    assert world.distill(validation=True, loggers={"memory": memory})
    [rows] = memory.runs.values()
    assert rows == merged(student_folder(world))
    [said] = [line for line in world.reporter.said if "memory" in line]
    assert said.startswith("main: the logger memory fails, and the training goes on without it: no network.")


def test_a_logger_that_never_works_or_never_returns_changes_nothing(
    world: World, whole: World, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.fails, release = 10**9, threading.Event()
    monkeypatch.setattr(sender, "GRACE_S", 0.2)
    makers = wanted_loggers(LoggersConfig(), lambda run, step, values: release.wait(60))
    assert world.distill(validation=True, loggers={"memory": memory, **makers})
    assert_same_student(world, whole)
    assert world.reporter.said[-1] == "callback did not take everything in time; the same command sends the rest."
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("logger "):
            thread.join(10)


def test_a_damaged_mark_begins_another_run(world: World, memory: type[Memory]) -> None:
    assert not world.distill(stop_after=5, loggers={"memory": memory})
    [mark] = world.folder.glob("students/*/logged/memory.json")
    assert LoggedRun.from_bytes(mark.read_bytes(), "mark").step == 4
    mark.write_bytes(mark.read_bytes().replace(b"4", b"8", 1))
    assert world.distill(loggers={"memory": memory})
    first, second = memory.runs.values()
    assert len(first) == 2
    assert second == merged(student_folder(world))


def test_nothing_is_wanted_unless_it_is_asked_for() -> None:
    assert wanted_loggers(LoggersConfig()) == {}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_not_installed_is_said_before_anything_begins(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()  # as wandb makes one where it is used
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=rf'not installed.\npip install "unic-pipe\[{name}\]"'):
        wanted_loggers(LoggersConfig.model_validate({name: {}}))


def test_installed_packages_offer_loggers(
    world: World, memory: type[Memory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[unic_pipe.loggers]\ntheirs = theirs_logs:Log\nbad = theirs_logs:Nothing\n"
    )
    (tmp_path / "theirs_logs.py").write_text("import test_loggers_memory\nLog = test_loggers_memory.Memory\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_loggers_memory", sys.modules[__name__])
    assert world.distill(loggers=wanted_loggers(LoggersConfig(installed=("theirs",))))
    assert list(memory.runs.values()) == [merged(student_folder(world))]
    for name, said in (("their", "did you mean theirs"), ("bad", "cannot be loaded: module 'theirs_logs' has no")):
        with pytest.raises(UserError, match=said):
            wanted_loggers(LoggersConfig(installed=(name,)))
