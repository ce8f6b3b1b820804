"""`plan`: what it predicts is what extraction then writes, and the settings that it proposes fit."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unic_pipe.cli.show.plan import plan_lines
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.extraction import preflight
from unic_pipe.pipeline.extraction.preflight import check_disk
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.plans import PlanReport
from unic_pipe.stages.report.speeds import measured_speeds


def plan(work: Any, *overrides: str, **options: Any) -> PlanReport:
    from unic_pipe.stages.distill.measure.cost import step_cost
    from unic_pipe.stages.plan.stage import PlanOptions
    from unic_pipe.stages.plan.stage import plan as plan_stage

    settings = PlanOptions(device="cpu", **options)
    return plan_stage(work.inventory(*overrides), settings, step_cost, SilentReporter())


def taken(folder: Path) -> tuple[int, int, int]:
    """Bytes, files and folders of a feature folder, without temporary files."""
    size = files = folders = 0
    for path, names, found in os.walk(folder):
        names[:] = [n for n in names if n != ".tmp"]
        folders += 1
        files += len(found)
        size += sum(os.path.getsize(os.path.join(path, f)) for f in found)
    return size, files, folders


@pytest.fixture(scope="module")
def planned(raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PlanReport]:
    """A working folder that was indexed and planned, with uneven views."""
    folder = tmp_path_factory.mktemp("planned") / "work"
    shutil.copytree(raw_template.folder, folder, symlinks=True)
    work = type(raw_template)(folder)
    work.index()
    return work, plan(work, "views.count=3", "views.patch=2")


@pytest.mark.parametrize("codec", ["float16", pytest.param("int8", marks=pytest.mark.slow)])
def test_predicted_within_five_percent(planned: tuple[Any, PlanReport], codec: str) -> None:
    work, report = planned
    settings = ("views.count=3", "views.patch=2", f"cache.codec={codec}")
    if codec != "float16":
        report = plan(work, *settings)
    work.extract(*settings)
    rows = [row for row in report.rows if row.stage == "extract"]
    names = {row.name for row in rows}
    assert names == {
        "features/train/lite0",
        "features/train/lite1",
        "features/val/lite0-center",
        "features/val/lite1-center",
    }
    for name in names:
        size, files, _ = taken(work.features(name.removeprefix("features/").replace("/", "-")))
        mine = [row for row in rows if row.name == name]
        assert sum(row.bytes for row in mine) == pytest.approx(size, rel=0.05)
        assert sum(row.bytes_left for row in mine) == sum(row.bytes for row in mine)
        assert sum(row.files for row in mine) == files
    assert report.stages["extract"].hours is not None
    assert report.stages["extract"].hours > 0
    assert report.bottleneck in ("decoding", "rendering", "encoders", "encoding", "disk")
    after = plan(work, *settings)
    assert (after.stages["extract"].bytes, after.stages["extract"].files, after.stages["extract"].hours) == (0, 0, 0)
    assert after.bottleneck is None


def test_every_stage_is_planned_before_anything_runs(planned: tuple[Any, PlanReport]) -> None:
    work, report = planned
    speeds = measured_speeds(work.inventory("views.count=3", "views.patch=2"))
    assert (speeds.device, set(speeds.by_name)) == ("cpu", {"lite0", "lite1", "tiny-random"}), (
        "as the report shows them"
    )
    assert min(speeds.by_name.values()) > 0
    students = [row for row in report.rows if row.name == "students/tiny"]
    assert [row.stage for row in students] == ["distill"]
    assert students[0].note.startswith("33 steps of ")
    probes = {row.name for row in report.rows if row.stage == "evaluate"}
    assert probes == {
        f"features/{d}/{e}-center" for d in ("train", "test") for e in ("lite0", "lite1", "tiny", "tiny-random")
    }
    assert report.fits
    assert report.bytes == sum(s.bytes for s in report.stages.values()) == sum(r.bytes_left for r in report.rows)
    assert report.inodes > report.files > 0


def test_a_second_plan_uses_what_the_first_has_measured(planned: tuple[Any, PlanReport]) -> None:
    work, first = planned
    settings, files = ("views.count=3", "views.patch=2"), list((work.folder / "runs" / "measurements").iterdir())
    assert first.measured is None
    assert first.stages["evaluate"].probes > 0
    for path in files:
        os.utime(path, (1.5e9, 1.5e9))
    again = plan(work, *settings)
    assert again.measured == "2017-07-14T02:40:00+00:00"
    steps = [row for report in (first, again) for row in report.rows if row.stage == "distill"]
    assert steps[0] == steps[1], "a step takes exactly as long"
    assert {path.stat().st_mtime for path in files} == {1.5e9}
    anew = plan(work, *settings, anew=True)
    assert anew.measured is None
    assert 1.5e9 not in {path.stat().st_mtime for path in files}
    lines = io.StringIO()
    Console(file=lines, width=80).print(plan_lines(again))
    assert "measured on 14 July 2017" in lines.getvalue()
    assert f"{again.stages['evaluate'].probes} probes" in lines.getvalue()


def test_throughput_replaces_the_measurement(planned: tuple[Any, PlanReport]) -> None:
    """90 rows × 3 views × 2 teachers."""
    work, _ = planned
    report = plan(work, "views.count=3", "views.seed=1", "distill.validation=null", throughput=10.0)
    assert report.stages["extract"].hours == pytest.approx(90 * 3 * 2 / 10 / 3600)


@pytest.mark.slow
def test_settings_that_fit_a_disk_and_a_deadline(planned: tuple[Any, PlanReport]) -> None:
    work, _ = planned
    settings = ("views.count=3", "views.seed=2", "distill.validation=null")
    full = plan(work, *settings)
    whole = plan(work, *settings, disk=1e12)
    assert whole.advice is not None
    assert "views: {count: 3, recipe: gentle, seed: 2}\ncache: {codec: float16}" in whole.advice
    smaller = plan(work, *settings, disk=full.bytes * 0.93).advice
    assert smaller is not None
    assert "cache: {codec: int8}" in smaller
    tight = plan(work, *settings, disk=full.bytes - full.stages["extract"].bytes * 0.75).advice
    assert tight is not None
    assert "patch: " in tight or "count: 1" in tight or "count: 2" in tight
    hours = plan(work, *settings, throughput=1.0).hours
    assert hours is not None
    fast = plan(work, *settings, throughput=1.0, deadline=3600 * hours - 300).advice
    assert fast is not None
    assert "views: {count: 1, recipe: gentle, seed: 2}" in fast
    assert plan(work, *settings, disk=1.0).advice.startswith("# Nothing fits")  # type: ignore[union-attr]


def test_extract_checks_the_disk_by_what_was_measured(
    planned: tuple[Any, PlanReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _ = planned
    inventory = work.inventory("views.count=2", "distill.validation=null")
    needs: list[FeatureNeed] = extraction_needs(inventory, ("lite0",))
    report = plan(work, "views.count=2", "distill.validation=null")
    predicted = sum(r.bytes for r in report.rows if r.name == "features/train/lite0")
    store = LocalStore(work.folder / "nothing")

    def free(size: float) -> None:
        monkeypatch.setattr(
            preflight.shutil, "disk_usage", lambda _: preflight.shutil._ntuple_diskusage(10**9, 0, size)
        )

    free(predicted * 1.01)
    check_disk(work.folder, [(needs[0], store)], 90)
    free(predicted * 0.99)
    with pytest.raises(StageError, match="Disk too small"):
        check_disk(work.folder, [(needs[0], store)], 90)


def test_what_cannot_be_planned_yet_is_named(raw: Any) -> None:
    report = plan(raw)
    assert {r.name: r.note for r in report.rows} == {
        "samples/train": "not indexed yet: unic-pipe index train",
        "samples/val": "not indexed yet: unic-pipe index val",
        "samples/test": "not indexed yet: unic-pipe index test",
        "students/tiny": "its samples are not indexed yet",
    }
    assert (report.bytes, report.files, report.fits) == (0, 0, False)
    # a benchmark that is not here is no gap of a plan: nothing of it is extracted before it is
    assert [row.name for row in report.unknown] == ["samples/train", "samples/val"]


def test_sizes_and_times_as_people_type_them() -> None:
    from unic_pipe.cli.show.plan import parse_bytes, parse_seconds

    assert [parse_bytes(t) for t in ("1TB", "200 gb", "1.5KiB", "12")] == [1e12, 2e11, 1536, 12]
    assert [parse_seconds(t) for t in ("48h", "30 min", "2d")] == [172_800, 1800, 172_800]
    for text in ("much", "1 parsec", "", "0h"):
        with pytest.raises(UserError, match="expected for instance"):
            parse_seconds(text)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [12.0, 0.0])
def test_a_calibrated_codec_is_predicted_from_other_rows_than_it_is_measured_on(
    raw: Any, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 blocks of 16 rows; the calibration's arrays are counted too. Also where there is no time for more than it takes."""
    monkeypatch.setattr("unic_pipe.stages.plan.stage.BUDGET_S", seconds)
    settings = ("cache.codec=klt", "cache.snr_db=15", "distill.validation=null")
    raw.index()
    report = plan(raw, *settings)
    raw.extract(*settings)
    for teacher in ("lite0", "lite1"):
        size, files, _ = taken(raw.features(f"train-{teacher}"))
        mine = [row for row in report.rows if row.name == f"features/train/{teacher}"]
        assert {row.codec for row in mine} == {"klt@15dB"}
        assert sum(row.bytes for row in mine) == pytest.approx(size, rel=0.10)
        assert sum(row.files for row in mine) == files
