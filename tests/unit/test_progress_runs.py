"""What long work says while it runs: lines, bars, and the run log that `status --watch` reads."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

import unic_pipe.pipeline.process.progress
import unic_pipe.pipeline.workspace.run_log
from unic_pipe.cli.show.status import running_table, status_tree
from unic_pipe.cli.show.verify import verify_lines
from unic_pipe.pipeline.process.progress import ConsoleReporter, SilentReporter, duration
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.wrapping import Wrapped, fit_abreast
from unic_pipe.pipeline.workspace.run_log import RunLog, running, silent_for
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.schemas.status import Artefact, Problem, StatusReport, VerifyReport


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(unic_pipe.pipeline.process.progress.time, "monotonic", clock)
    return clock


@pytest.fixture
def reporter():
    return ConsoleReporter(Console(file=io.StringIO(), width=80))


def said(reporter):
    return reporter.console.file.getvalue().splitlines()


def shown(renderable, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def document(tmp_path):
    [path] = (tmp_path / "runs").glob("*.json")
    return RunDocument.from_bytes(path.read_bytes(), str(path))


def test_without_a_terminal_there_is_at_most_one_line_a_minute(reporter, clock):
    with reporter.task("extract train", total=10_000, done=1_000) as task:
        for _ in range(3 * 60):
            clock.now += 1
            task.advance(10)
            task.note("2 unusable rows")
    assert said(reporter) == [
        "extract train: 1,600/10,000 img · 10 img/s · 14 min 00 s left · 2 unusable rows",
        "extract train: 2,200/10,000 img · 10 img/s · 13 min 00 s left · 2 unusable rows",
        "extract train: 2,800/10,000 img · 10 img/s · 12 min 00 s left · 2 unusable rows",
        "extract train: 1,800 img in 3 min 00 s · 10 img/s · 2 unusable rows",
    ]


def test_slow_work_has_a_rate_and_no_work_says_nothing(reporter, clock):
    with reporter.task("train", total=10, unit="step") as task:
        clock.now += 100
        task.advance(5)
    with reporter.task("nothing", total=10):
        clock.now += 100
    assert said(reporter) == [
        "train: 5/10 step · 20 s each · 1 min 40 s left",
        "train: 5 step in 1 min 40 s · 20 s each",
    ]


def test_lines_are_printed_as_they_are(reporter):
    line = "data/[train]/[/x]: " + "word " * 40 + "[bold]end[/]"
    reporter.say(line)
    assert said(reporter) == [line]


def test_a_failure_still_says_what_was_done(reporter, clock):
    with pytest.raises(StageError), reporter.task("x", total=3) as task:  # noqa: PT012
        clock.now += 2
        task.advance(2)
        raise StageError("no")
    assert said(reporter) == ["x: 2 img in 2.0 s · 1.0 img/s"]


def test_on_a_terminal_there_is_a_bar_and_then_a_summary():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    console = Console(file=Terminal(), force_terminal=True, width=120)
    with ConsoleReporter(console).task("extract [a]", total=4) as task:
        task.advance(2)
        task.note("loss 1.23")
    text = console.file.getvalue()
    assert "extract [a]" in text
    assert "2/4 img" in text
    assert text.rstrip().splitlines()[-1].endswith("loss 1.23")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"),
        (3 * 3600 + 20 * 60, "3 h 20 min"), (47 * 3600, "47 h 00 min"), (41.2 * 86_400, "41 days"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_a_run_is_written_down_while_it_runs_and_when_it_ends(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(sys, "argv", ["unic-pipe", "extract", "--set", "a=b c"])
    with RunLog(tmp_path, "extract", SilentReporter()) as log:
        assert document(tmp_path).state == "running"
        with log.task("extract train", total=100, done=10) as task:
            clock.now += 10
            task.advance(20)
            task.note("loss 2")
            run = document(tmp_path)
            assert (run.title, run.done, run.total, run.rate, run.eta_s) == ("extract train", 30, 100, 2.0, 35.0)
            clock.now += 10
            task.note("loss 1")
        assert document(tmp_path).note == "loss 1"
        assert [r.stage for r in running(tmp_path)] == ["extract"]
    run = document(tmp_path)
    assert (run.state, run.message, run.eta_s) == ("done", "", None)
    assert (run.pid, run.host, run.command) == (os.getpid(), socket.gethostname(), "unic-pipe extract --set 'a=b c'")
    assert {"python", "unic-pipe", "torch"} <= set(run.versions)
    assert silent_for(run) < 60
    assert running(tmp_path) == []


def test_beats_are_written_every_few_seconds_only(tmp_path, clock, monkeypatch):
    with RunLog(tmp_path, "x", SilentReporter()) as log, log.task("t", total=10_000) as task:
        writes = []
        monkeypatch.setattr(log._store, "put", lambda *_: writes.append(1))
        for _ in range(600):
            clock.now += 0.1
            task.advance()
    assert 10 <= len(writes) <= 13


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StageError("Disk full", "Free some"), "Disk full"),
        (KeyError("x"), "KeyError: 'x'"),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_failed_run_says_why(tmp_path, error, message):
    with pytest.raises(type(error)), RunLog(tmp_path, "distill", SilentReporter()):
        raise error
    run = document(tmp_path)
    assert run.state == "failed"
    assert run.message == (message or "KeyboardInterrupt: ")


def test_the_log_does_not_hide_why_the_stage_failed(tmp_path, monkeypatch):
    def full(*_):
        raise StageError("Disk full")

    with pytest.raises(KeyError), RunLog(tmp_path, "distill", SilentReporter()) as log:  # noqa: PT012
        monkeypatch.setattr(log._store, "put", full)
        raise KeyError


def test_a_stopped_run_says_so(tmp_path):
    stop = Stop()
    with RunLog(tmp_path, "extract", SilentReporter()) as log:
        log.stopped(stop)
        assert document(tmp_path).state == "running"
        stop.request()
        log.stopped(stop)
    assert document(tmp_path).state == "stopped"


def test_a_process_that_is_gone_is_not_running(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with RunLog(tmp_path, "extract", SilentReporter()) as log:
        here = log._document.model_copy(update={"state": "running", "pid": gone.pid})
    there = here.model_copy(update={"host": "another.host", "stage": "distill"})
    folder = tmp_path / "runs"
    (folder / "20990101T000000-here.json").write_bytes(here.to_bytes())
    (folder / "20990101T000001-there.json").write_bytes(there.to_bytes())
    (folder / "20990101T000002-damaged.json").write_text("{")
    (folder / "encoders.json").write_text("{}")
    assert [run.stage for run in running(tmp_path)] == ["distill"]
    assert running(tmp_path / "nothing") == []


def test_running_stages_are_shown_with_rate_time_left_and_silence(tmp_path):
    with RunLog(tmp_path, "extract", SilentReporter()) as log:
        run = log._document.model_copy(
            update={
                "title": "extract train",
                "done": 1200,
                "total": 5000,
                "rate": 115.4,
                "eta_s": 3700.0,
                "note": "loss 1",
            }
        )
    lost = run.model_copy(update={"updated": "2026-01-01T00:00:00+00:00"})
    text = shown(running_table([run, lost]))
    assert f"{run.host}:{run.pid}" in text
    for words in ("extract train", "1,200/5,000", "115 img/s", "1 h 01 min", "loss 1", "silent for"):
        assert words in text
    assert "Nothing is running." in shown(running_table([]))


@pytest.mark.parametrize("width", [80, 24])
def test_names_in_tables_are_wrapped_between_their_parts(width):
    name = "imagenet-train/vit_small_patch14_dinov2.lvd142m"
    table = Table(box=None)
    table.add_column("name")
    table.add_column("what", no_wrap=True)
    table.add_row(Wrapped(name, "bold"), "a" * 8)
    text = shown(table, width)
    assert "".join(text.replace("a" * 8, "").split()).removeprefix("namewhat") == name
    for part in ("imagenet-", "train/", "vit_", "small_", "patch14_", "dinov2.", "lvd142m"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width


def test_columns_that_do_not_fit_side_by_side_are_known():
    assert fit_abreast(["benchmark", "main", "efficientnet-lite0", "efficientnet-lite1", "main-random"], 3)
    assert not fit_abreast(["benchmark", *(f"convolutional{n}" for n in range(5))], 3)


def artefact(name, state, done=0, total=10, reason="", stage="extract"):
    return Artefact(
        name=name, stage=stage, state=state, done=done, total=total, reason=reason, digest="ab" * 32, next="unic-pipe x"
    )


def test_status_is_a_tree_with_the_next_command():
    artefacts = (
        artefact("samples/train", "fresh", 1200, 1200, stage="index"),
        artefact("features/train/dino", "partial", 61, 100),
        artefact("features/train/[ibot]", "stale", reason="differs: compute.batch: 64 → 32"),
        artefact("students/main", "missing", stage="distill"),
    )
    lines = shown(status_tree(StatusReport(artefacts=artefacts, next="unic-pipe extract"), "/x")).splitlines()
    assert [name for line in lines if (name := line.strip("│ ├└─")).endswith("/")] == [
        "samples/",
        "features/",
        "students/",
    ]
    assert any("✔ train" in line and "fresh" in line and "1,200 rows" in line for line in lines)
    assert any("◐ train/dino" in line and "partial  61 of 100 units (61%)" in line for line in lines)
    assert any("↻ train/[ibot]" in line and "differs: compute.batch: 64 → 32" in line for line in lines)
    assert any("· main" in line and "missing" in line and "abababab" not in line for line in lines)
    assert lines[-1].startswith("Next: unic-pipe extract")
    fresh = StatusReport(artefacts=artefacts[:1], next=None)
    assert "Everything is fresh." in shown(status_tree(fresh, "/x"))


def test_verification_is_shown_with_what_is_damaged():
    problem = Problem(path="features/x/view-000/cls/c/0", teacher="dino", token="cls", view=0, block=3, kind="content")
    assert "✔ 1,234 files checked" in shown(verify_lines(VerifyReport(ok=True, checked=1234, problems=())))
    text = shown(verify_lines(VerifyReport(ok=False, checked=9, problems=(problem,) * 60)))
    assert "✘ 9 files checked, 60 problems:" in text
    assert "features/x/view-000/cls/c/0" in text
    assert "... and 10 more (--json lists all)" in text
    one = problem.model_copy(update={"teacher": None, "view": None, "token": None, "block": None})
    assert "1 problem:" in shown(verify_lines(VerifyReport(ok=False, checked=9, problems=(one,))))
