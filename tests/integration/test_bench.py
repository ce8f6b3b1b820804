"""`bench` on a real working folder: what it reports, and that it leaves nothing behind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.bench.against import HEADS, LIVE, LOOP, SCIKIT

HOST = {"read", "decode", "render", "encode", "commit"}


def run_cli(work: Any, *arguments: str) -> int:
    from unic_pipe.cli.main import app

    code: int = app(args=["bench", "-c", str(work.folder), *arguments], prog_name="unic-pipe", standalone_mode=False)
    return code


@pytest.mark.slow
def test_everything_is_measured_and_nothing_is_left(raw: Any, capfd: pytest.CaptureFixture[str]) -> None:
    (raw.folder / "bench.tmp" / "of a killed bench").mkdir(parents=True)
    assert run_cli(raw, "--quick", "--repeats", "1", "--rows", "32", "--json", "--device", "cpu", "--against") == 0
    report = json.loads(capfd.readouterr().out)
    rows = {(row["part"], row["name"]): row for row in report["rows"]}
    assert {name for part, name in rows if part == "extract"} == {"wall", "forward", "disk", *HOST}
    assert {name for part, name in rows if part == "distill"} == {
        "wall", "student step", "targets", "cache read", "gather", "image decode", "render",
    }  # fmt: skip
    assert {("live", "wall"), ("live", "teachers"), ("ladder", "wall"), ("ladder", "products"), ("probe", "fit")} < set(
        rows
    )
    for row in report["rows"]:
        assert 0 < row["low_seconds"] <= row["seconds"] <= row["high_seconds"]
    pieces = [row for row in report["rows"] if row["part"] == "extract" and row["resource"] in ("host", "device")]
    cpu = sum(row["cpu_seconds"] for row in pieces)
    assert sum(row["bound_share"] for row in pieces) == pytest.approx(1)
    assert report["extract_ratio"] == pytest.approx(cpu / report["cores"] / rows["extract", "wall"]["seconds"])
    trained = [row for row in report["rows"] if row["part"] == "distill" and row["resource"] is not None]
    steps = sum(row["cpu_seconds"] for row in trained if row["resource"] == "device")
    allowed = max(sum(row["cpu_seconds"] for row in trained) / report["cores"], steps)  # they have one thread
    assert report["distill_ratio"] == pytest.approx(allowed / rows["distill", "wall"]["seconds"])
    step, teachers = rows["distill", "student step"]["seconds"], rows["live", "teachers"]["seconds"]
    assert report["live_bound"] == pytest.approx(1 + teachers / step)
    live, cached = rows["live", "wall"]["seconds"], rows["distill", "wall"]["seconds"]
    assert report["live_speedup"] == pytest.approx(live / cached)
    assert [(a["part"], a["peer"]) for a in report["against"]] == [
        ("extract", LOOP), ("distill", LIVE), ("probe", SCIKIT), ("probe", HEADS),
    ]  # fmt: skip
    for against in report["against"]:
        assert 0 < against["low_ratio"] <= against["ratio"] <= against["high_ratio"]
        assert against["ratio"] == pytest.approx(against["peer_seconds"] / against["seconds"])
    assert report["against"][1]["ratio"] == pytest.approx(report["live_speedup"])
    assert (report["device"], report["threads"]) == ("cpu", {"extract": 1, "distill": 1})
    assert (raw.folder / "runs" / "bench.html").stat().st_size > 0
    assert sorted(path.name for path in raw.folder.iterdir()) == ["data", "runs", "samples", "unic-pipe.yaml"]


@pytest.mark.slow
def test_finished_artefacts_stay_as_they_are(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from unic_pipe.stages.distill.model.distiller import Distiller

    compile_parts, compiled = Distiller.compile_parts, list[Distiller]()

    def traced(model: Distiller) -> None:
        compiled.append(model)
        compile_parts(model, backend="eager")  # what a C++ compiler would make of the graphs takes minutes

    monkeypatch.setattr(Distiller, "compile_parts", traced)
    before = trained.content(), trained.times()
    settings = "--rows", "32", "--set", "cache.codec=klt", "--set", "views.patch=1", "--set", "distill.compile=true"
    assert run_cli(trained, "--quick", "--repeats", "1", *settings) == 0
    assert (trained.content(), trained.times()) == before
    assert len(compiled) == 1, "what is measured is what trains"


@pytest.mark.parametrize("moment", [pytest.param("extract: ", marks=pytest.mark.slow), "distill: "])
def test_a_stop_leaves_nothing(raw: Any, moment: str) -> None:
    from unic_pipe.cli.bench import _parts
    from unic_pipe.stages.bench.run import BenchOptions, bench

    raw.index()
    stop = Stop()

    class Reporter(SilentReporter):
        def say(self, text: str) -> None:
            if text.startswith(moment):
                stop.request()

    assert bench(raw.inventory(rows="16"), BenchOptions("cpu", quick=True), _parts(), Reporter(), stop) is None
    assert not (raw.folder / "bench.tmp").exists()


def test_unknown_students_are_named(raw: Any) -> None:
    with pytest.raises(UserError, match="tinny"):
        run_cli(raw, "--student", "tinny")
