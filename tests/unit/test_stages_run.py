"""`run`: the stages that have something to do, in order, and what it says; and the pointers that artefacts get."""

from __future__ import annotations

import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.status import make_plan
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.status import Artefact, StatusReport
from unic_pipe.stages.run import ORDER, run


class Steps:
    """Stands for the stages: each notes that it ran and does its work."""

    def __init__(self, here, stop=None, after=None):
        self.here, self.stop, self.after, self.ran = here, stop, after, []
        self.lines = []
        self.work = {
            "index": lambda: here.index(),
            "extract": lambda: here.extract(),
            "distill": lambda: here.finish_student(),
            "evaluate": lambda: here.evaluate("dino", "ibot", "main"),
        }

    def step(self, stage):
        def bring_up_to_date(inventory, artefacts):
            self.ran.append((stage, [a.name for a in artefacts]))
            self.work[stage]()
            if stage == self.after:
                self.stop.request()

        return bring_up_to_date

    def run(self):
        reporter = SilentReporter()
        reporter.say = self.lines.append
        run(lambda: self.here.look(), {s: self.step(s) for s in ORDER}, reporter, self.stop or Stop())
        return all(a.state == "fresh" for a in make_plan(self.here.look()).artefacts)


def test_run_runs_what_is_not_fresh_in_order_and_then_nothing(here):
    first = Steps(here)
    assert first.run()
    assert first.ran == [
        ("index", ["samples/test", "samples/train"]),
        ("extract", ["features/train/dino", "features/train/ibot"]),
        ("distill", ["students/main"]),
        ("evaluate", ["evaluations/main"]),
    ]
    assert first.lines[2] == "[3/4] distill: students/main missing"
    second = Steps(here)
    assert second.run()
    assert second.ran == []
    assert second.lines[1:3] == [
        "[2/4] extract: nothing to do, all 2 artefacts are fresh",
        "[3/4] distill: nothing to do, 1 artefact is fresh",
    ]


def test_run_goes_on_in_the_middle_and_stops_when_asked(here):
    here.index()
    here.extract("dino")
    here.extract("ibot", blocks=[0])
    stop = Stop()
    steps = Steps(here, stop, after="extract")
    assert not steps.run()
    assert steps.ran == [("extract", ["features/train/ibot"])]
    assert steps.lines == [
        "[1/4] index: nothing to do, all 2 artefacts are fresh",
        "[2/4] extract: features/train/ibot partial 4 of 12",
    ]


def test_run_is_not_done_when_a_stage_could_not_finish(here):
    steps = Steps(here)
    steps.work["evaluate"] = lambda: None
    assert not steps.run()


def test_pointers_move_in_one_step_and_respect_what_is_in_the_way(tmp_path):
    (tmp_path / "a-00000001").mkdir()
    point(tmp_path, "a", "a-00000001")
    point(tmp_path, "a", "a-00000001")
    point(tmp_path, "a", "a-00000002")
    assert (tmp_path / "a").readlink().name == "a-00000002"
    with pytest.raises(
        UserError, match=r"(?s)a-00000001 is in the way of the pointer to a-00000002.*mv .*a-00000001.old"
    ):
        point(tmp_path, "a-00000001", "a-00000002")


def test_a_teachers_probe_is_fitted_before_the_student_that_learns_from_it(here, monkeypatch):
    fresh, ran = {"samples": False, "features": False, "student": False, "probe": False}, []

    def plan(_):
        waits = () if fresh["probe"] else ("evaluations/main",)
        rows = [("samples", "index", ()), ("features", "extract", ()), ("student", "distill", waits)]
        artefacts = [
            Artefact(name=n, stage=s, state="fresh" if fresh[n] else "missing", done=0, total=1, reason="", digest=None,
                     next=None, waits_for=w) for n, s, w in rows
        ]  # fmt: skip
        return StatusReport(artefacts=tuple(artefacts), next=None)

    def step(stage, makes):
        def bring_up_to_date(inventory, artefacts):
            ran.append(stage)
            fresh[makes] = True

        return bring_up_to_date

    monkeypatch.setattr("unic_pipe.stages.run.make_plan", plan)
    steps = dict(zip(ORDER, ("samples", "features", "student", "probe"), strict=True))
    run(lambda: here.look(), {s: step(s, made) for s, made in steps.items()}, SilentReporter(), Stop())
    assert ran == ["index", "extract", "evaluate", "distill"]
