"""`gc` removes what nothing names, all of it, nothing else, and nothing under a live run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.workspace.run_log import RunLog
from unic_pipe.schemas.errors import StageError
from unic_pipe.stages.gc.stage import collect, find


def paths(work: Any, *overrides: str) -> dict[str, str]:
    return {item.path: item.kind for item in find(work.inventory(*overrides)).items}


def test_a_fresh_working_folder_has_no_garbage(trained: Any) -> None:
    before = trained.content()
    report = find(trained.inventory())
    assert (report.items, report.unknown, report.bytes) == ((), (), 0)
    done = collect(trained.inventory(), report, SilentReporter())
    assert done.removed
    assert trained.content() == before


def test_what_was_replaced_goes_and_what_a_student_was_made_from_stays(trained: Any) -> None:
    old = {name: trained.features(f"train-{name}").name for name in ("lite0", "lite1")}
    trained.extract("views.seed=9")
    # The student is still the one of the old features.
    assert paths(trained, "views.seed=9") == {}
    trained.distill("views.seed=9")
    other = "views.seed=9"
    student = next(f for f in (trained.folder / "students").glob("tiny-????????") if f.name != trained.student().name)
    found = paths(trained, other)
    assert found == {
        f"features/{old['lite0']}": "features", f"features/{old['lite1']}": "features",
        f"students/{student.name}": "students",
    }  # fmt: skip
    # With the old settings in the configuration, the old folders are asked for.
    assert paths(trained) == {}
    kept = {name: data for name, data in trained.content().items() if not any(name.startswith(p + "/") for p in found)}
    report = collect(trained.inventory(other), find(trained.inventory(other)), SilentReporter())
    assert report.removed
    assert report.bytes > 100_000
    assert trained.content() == kept
    assert set(trained.states(other).values()) >= {"fresh"}
    assert trained.artefact("students/tiny", other).state == "fresh"


def test_an_unfinished_training_with_other_settings_and_its_features(trained: Any) -> None:
    trained.extract("views.count=1", teachers=["lite0"])
    trained.distill("students.tiny.optimizer.lr=0.01", stop_at=20, restart=True)
    ((path, kind),) = paths(trained).items()
    assert kind == "students"
    assert path.startswith("students/tiny-")
    assert paths(trained, "students.tiny.optimizer.lr=0.01") == {}


def test_unfinished_pilots_stay(trained: Any) -> None:
    trained.distill(rows="32", stop_at=8)
    unfinished = [f.name for f in (trained.folder / "students").glob("tiny-*") if not (f / "export").exists()]
    assert len(unfinished) == 1
    assert paths(trained) == {}


def test_what_kills_and_verify_leave_behind(extracted: Any) -> None:
    lite0 = extracted.features("train-lite0")
    (lite0 / "damaged" / "records").mkdir(parents=True)
    (lite0 / "damaged" / "records" / "x.json").write_bytes(b"-" * 100)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    (lite0 / ".tmp" / f"{host}@{dead.pid}-3").write_bytes(b"-" * 10)
    (lite0 / ".tmp" / f"{host}@{os.getpid()}-3").write_bytes(b"-" * 10)
    (extracted.folder / "features" / f".train-lite0.{host}@{dead.pid}-1").symlink_to("nowhere")
    (extracted.folder / "features" / ".trash-train-lite0-00000000" / "view-000").mkdir(parents=True)
    with RunLog(extracted.folder, "extract", SilentReporter()):
        pass
    (run,) = (extracted.folder / "runs").glob("*-extract-*.json")
    os.utime(run, (time.time() - 40 * 86_400,) * 2)
    found = paths(extracted)
    assert found == {
        f"features/{lite0.name}/damaged": "damaged",
        f"features/{lite0.name}/.tmp/{host}@{dead.pid}-3": "temporary",
        f"features/.train-lite0.{host}@{dead.pid}-1": "temporary",
        "features/.trash-train-lite0-00000000": "temporary",
        f"runs/{run.name}": "run",
    }
    before = extracted.content()
    collect(extracted.inventory(), find(extracted.inventory()), SilentReporter())
    assert paths(extracted) == {}
    left = {name: data for name, data in before.items() if not any(name.startswith(path) for path in found)}
    assert extracted.content() == left
    assert (lite0 / ".tmp" / f"{host}@{os.getpid()}-3").exists()


def test_nothing_that_it_does_not_know(extracted: Any) -> None:
    old = extracted.features("train-lite0")
    extracted.extract("views.seed=9", "distill.validation=null")
    (old / "notes.txt").write_text("mine")
    mine = extracted.folder / "features" / "mine-01234567"
    mine.mkdir()
    (mine / "manifest.json").write_text("{}")
    lite1 = extracted.folder / "features" / "train-lite1"
    report = find(extracted.inventory("views.seed=9"))
    assert set(report.unknown) == {f"features/{old.name}", "features/mine-01234567"}
    assert {item.kind for item in report.items} == {"features"}
    collect(extracted.inventory("views.seed=9"), report, SilentReporter())
    assert (old / "manifest.json").exists()
    assert mine.exists()
    assert lite1.resolve().exists()


def test_never_under_a_live_run(extracted: Any) -> None:
    extracted.extract("views.seed=9")
    inventory = extracted.inventory("views.seed=9")
    report = find(inventory)
    assert report.items
    before = extracted.content()
    with (
        RunLog(extracted.folder, "extract", SilentReporter()),
        pytest.raises(StageError, match=r"^extract is running on .*nothing is removed under a live run"),
    ):
        collect(inventory, report, SilentReporter())
    assert extracted.content() == before
    assert Path(extracted.folder / "features").is_dir()
    collect(inventory, report, SilentReporter())
    assert extracted.content() != before


def test_teachers_that_cannot_be_resolved_keep_everything(extracted: Any) -> None:
    extracted.extract("views.seed=9", "distill.validation=null")
    lost = ("views.seed=9", "teachers.lite0.weights=gone.pth")
    assert paths(extracted, *lost) == {}
    assert paths(extracted, "views.seed=9") != {}


def test_an_index_that_was_replaced_goes_whole(trained: Any) -> None:
    other = "samples.datasets.test.source=data/val-*.tar"
    trained.index()
    old = (trained.folder / "samples/test").resolve()
    assert any(old.glob("segment-*.parquet.blocks"))
    trained.index(other)
    assert paths(trained, other) == {f"samples/{old.name}": "samples"}
    assert find(trained.inventory(other)).unknown == ()
    assert collect(trained.inventory(other), find(trained.inventory(other)), SilentReporter()).removed
    assert not old.exists()
