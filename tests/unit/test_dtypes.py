"""The floating-point type of each teacher: when another one is worth it, what is measured for that, and where it is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unic_pipe.cli.init import _measured
from unic_pipe.cli.show.precision import worth
from unic_pipe.pipeline.encoders import compiled, load_encoder
from unic_pipe.pipeline.extraction import dtypes
from unic_pipe.pipeline.extraction.dtypes import choose, measure_ways, native_dtypes, slow_dtypes
from unic_pipe.pipeline.samples.glimpse import some_images
from unic_pipe.pipeline.samples.sources import find_source
from unic_pipe.pipeline.workspace.configuration import load_workspace, write_dtypes
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.precision import PrecisionTrial, TeacherPrecision
from unic_pipe.stages import precision
from unic_pipe.stages.precision import measure_teachers, with_dtypes

TINY = (
    "teachers={vit: {encoder: 'timm:vit_tiny_patch16_224', model_args: {depth: 1}, weights: 'random:0', image_size: 32}}",
    "views.recipe=unic",
    "cache.codec=auto",
)


def trial(name: str, speedup: float, snr_db: float, patch_db: float | None = None, low: float | None = None) -> Any:
    return PrecisionTrial(
        name=name, images_per_second=10 * speedup, speedup=speedup, speedup_low=speedup if low is None else low,
        snr_db={"cls": snr_db, "patch": snr_db if patch_db is None else patch_db},
    )  # fmt: skip


FLOAT32 = trial("float32", 1.0, 200.0)
VIT = trial("bfloat16", 2.3, 46.0)


@pytest.mark.parametrize(
    ("trials", "snr_db", "chosen"),
    [
        ([VIT], 15, "bfloat16"),
        ([VIT], 26, "bfloat16"),
        ([VIT], 27, "float32"),
        ([trial("bfloat16", 1.3, 23.5)], 15, "float32"),
        ([trial("bfloat16", 2.3, 46.0, patch_db=30.0)], 15, "float32"),
        ([trial("bfloat16", 1.1, 46.0)], 15, "float32"),
        ([trial("bfloat16", 1.4, 46.0, low=0.9)], 15, "float32"),
        ([trial("bfloat16", 0.2, 46.0)], 15, "float32"),
        ([VIT, trial("float16", 2.4, 60.0)], 15, "bfloat16"),
        ([VIT, trial("float16", 2.4, 60.0)], 30, "float16"),
        ([VIT, trial("float16", 3.0, 60.0)], 15, "float16"),
        ([VIT, trial("float16", 3.0, 0.0)], 15, "bfloat16"),
        ([trial("threads: 8", 3.0, 100.0)], 15, "float32"),
    ],
)
def test_a_type_is_taken_that_is_faster_and_keeps_what_the_cache_keeps(
    trials: list[Any], snr_db: float, chosen: str
) -> None:
    assert choose([FLOAT32, *trials], snr_db) == chosen


def test_another_machine_says_in_a_line_that_a_recorded_type_is_slow_there() -> None:
    named = [("dino", "bfloat16"), ("lite0", "float32"), ("ibot", "bfloat16")]
    assert slow_dtypes(named, ("float32", "bfloat16"), "cpu") is None  # type: ignore[arg-type]
    line = slow_dtypes(named, ("float32",), "cpu")  # type: ignore[arg-type]
    assert (line or "").startswith("dino, ibot: computed in bfloat16")
    assert native_dtypes("cpu")[0] == "float32"
    assert native_dtypes("mps") == ("float32",)


def test_every_way_of_an_accelerator_is_measured_by_the_same_code(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, as if it were one: other types, views that are finished where the encoder is, and compiled passes."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    inventory = raw.inventory(*TINY, "compute.batch=12")
    images = precision._images(inventory)
    assert len(images) == 12
    encoder = inventory.teacher("vit")
    ways = precision._ways(inventory.config, encoder, images, "cuda", 1, settings=True)
    assert list(ways) == ["float32", "bfloat16", "float16", "views: device", "compile: true"]
    found = {t.name: t for t in measure_ways(load_encoder(encoder), ways, ("cls", "patch"), 1, 60.0)}
    assert found.keys() == ways.keys()
    assert found["float32"].snr_db == {"cls": 200.0, "patch": 200.0}
    assert (found["float32"].speedup, found["float32"].speedup_low) == (1.0, 1.0)
    for name, low, high in (
        ("bfloat16", 25, 60),
        ("float16", 40, 80),
        ("views: device", 40, 200),
        ("compile: true", 80, 200),
    ):
        assert all(low < db <= high for db in found[name].snr_db.values()), found[name]
    assert found["bfloat16"].snr_db["cls"] < found["float16"].snr_db["cls"]
    assert all(t.images_per_second > 0 and t.speedup_low <= t.speedup for t in found.values())


def test_images_are_from_all_over_a_source(tmp_path: Path, raw: Any) -> None:
    for number in range(12):
        file = tmp_path / "data" / f"class{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"{number % 3}".encode())
    folders = find_source("train", DatasetConfig(source="data"), [tmp_path])
    assert sorted(some_images(folders, 6)) == [b"0", b"0", b"1", b"1", b"2", b"2"]
    assert sorted(some_images(folders, 2)) == [b"0", b"1"]
    flat = find_source("train", DatasetConfig(source="data/class1"), [tmp_path])
    assert some_images(flat, 9) == [b"1"] * 4
    tars = find_source("train", DatasetConfig(source="data/train-*.tar"), [raw.folder])
    first, second, third = (some_images(find_source("x", DatasetConfig(source=t), [raw.folder]), 2) for t in tars.tars)
    assert some_images(tars, 6) == [*first, *second, *third]


def test_teachers_are_measured_before_anything_is_indexed(
    raw: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "SECONDS", 60.0)
    monkeypatch.setattr(dtypes, "MOST_TURNS", 2)
    [found] = measure_teachers(raw.inventory(*TINY, "views.patch=0"), tools.quiet(), settings=False)
    assert (found.teacher, found.device, found.configured, found.remark) == ("vit", "cpu", "float32", "")
    assert [t.name for t in found.trials] == ["float32", "bfloat16"]
    assert found.trials[1].snr_db.keys() == {"cls"}, "of what is cached"
    assert not (raw.folder / "samples").exists()


@pytest.mark.parametrize(
    ("change", "seconds", "budget", "remark"),
    [
        ("teachers={vit: {encoder: dino}}", 10.0, None, "dino"),
        ("compute.batch=4", 10.0, None, "4 images that can be read; it takes 8"),
        ("compute.batch=8", 10.0, 0.0, "no time left"),
        ("compute.batch=8", 1e-6, None, "8 images take longer than 0 s here"),
    ],
)
def test_what_cannot_be_measured_stays_as_it_is(
    change: str, seconds: float, budget: float | None, remark: str, raw: Any, tools: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "SECONDS", seconds)
    inventory = raw.inventory(*TINY, change, "compute.dtype=bfloat16")
    [found] = measure_teachers(inventory, tools.quiet(), budget=budget)
    assert (found.chosen, found.trials) == ("bfloat16", ())
    assert remark in found.remark
    assert list(worth([found], 15, calibrated=True)) == []


def measured(teacher: str, chosen: Any) -> TeacherPrecision:
    return TeacherPrecision(
        teacher=teacher, device="cpu", configured="float32", chosen=chosen, trials=(FLOAT32, VIT)
    )  # fmt: skip


def test_what_is_worth_it_is_written_and_nothing_else(raw: Any) -> None:
    config = raw.inventory().config
    found = [measured("lite0", "bfloat16"), measured("lite1", "float32")]
    changed = with_dtypes(config, found)
    assert [teacher.dtype for teacher in changed.teachers.values()] == ["bfloat16", None]
    before = (raw.folder / "unic-pipe.yaml").read_text()
    commented = before.replace("teachers:", "teachers:   # frozen").replace("compute:", "# how\ncompute:")
    (raw.folder / "unic-pipe.yaml").write_text(commented)
    assert write_dtypes(load_workspace(raw.folder), {"lite0": "bfloat16"})
    after = (raw.folder / "unic-pipe.yaml").read_text()
    assert after == commented.replace("lite0: {encoder", "lite0: {dtype: bfloat16, encoder")
    assert load_workspace(raw.folder).config == changed
    assert write_dtypes(load_workspace(raw.folder), {"lite0": "float32"})
    assert (raw.folder / "unic-pipe.yaml").read_text() == after.replace("bfloat16", "float32")
    assert list(worth(found, 15, calibrated=True)) == [
        "lite0: bfloat16 (bfloat16 is 2.3 × as fast as float32, features 46 dB)"
    ]
    assert next(worth(found[1:], 15, calibrated=True)).startswith("Types stay as they are: no other is 1.15 ×")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("teachers:\n  a: {}\n  b: {}\n# end\n", "teachers:\n  a: {dtype: bfloat16}\n  b: {}\n# end\n"),
        (
            "teachers:\n  a:\n    encoder: dino   # this\n\n# of the cache\ncache: {}\n",
            "teachers:\n  a:\n    dtype: bfloat16\n    encoder: dino   # this\n\n# of the cache\ncache: {}\n",
        ),
        ("teachers:\n  a: &it {encoder: dino}\n  b: *it\n", None),
        ("teachers:\n      a:   {}\n", None),
    ],
)
def test_a_file_is_changed_where_it_must_be_or_not_at_all(text: str, written: str | None, tmp_path: Path) -> None:
    head = "# head\nsamples: {datasets: {train: {source: train}}}\n"
    (tmp_path / "unic-pipe.yaml").write_text(head + text)
    assert write_dtypes(load_workspace(tmp_path), {"a": "bfloat16"}) is (written is not None)
    assert (tmp_path / "unic-pipe.yaml").read_text() == head + (written or text)


def test_init_measures_where_something_can_win(raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = raw.inventory(*TINY, f"samples.roots=[{raw.folder}]").config
    monkeypatch.chdir(tmp_path)
    console = Console(record=True, file=io.StringIO())
    monkeypatch.setattr(precision, "native_dtypes", lambda device: ("float32",))
    assert _measured(config, [], console, False) is config, "nothing can win on this device"
    monkeypatch.setattr(precision, "native_dtypes", lambda device: ("float32", "bfloat16"))
    assert _measured(config, [], console, True) is config
    assert console.export_text() == ""
    assert _measured(config, ["vit"], console, False) is config
    assert console.export_text().startswith("Not measured yet")
    monkeypatch.setattr(precision, "choose", lambda trials, snr_db: trials[-1].name)
    found = _measured(config, [], console, False)
    assert [teacher.dtype for teacher in found.teachers.values()] == ["bfloat16"]
    assert "vit: bfloat16 (bfloat16 is" in console.export_text()
