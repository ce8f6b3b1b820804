"""The arithmetic of `bench`: from times of pieces to bounds, shares and words. No clock is read here."""

from __future__ import annotations

import re

import pytest

from unic_pipe.pipeline.process.stopwatch import Lap, Stopwatch
from unic_pipe.schemas.bench import BenchReport, BenchRow, Bound, Part, Resource
from unic_pipe.stages.bench.bounds import bound_of, rows_of, with_shares
from unic_pipe.stages.bench.page import page
from unic_pipe.stages.bench.words import conditions, headlines


def row(name: str, wall: float, cpu: float, resource: Resource | None = None, part: Part = "extract") -> BenchRow:
    return BenchRow(
        part=part, name=name, resource=resource, images=10, seconds=wall, low_seconds=wall, high_seconds=wall,
        cpu_seconds=cpu,
    )  # fmt: skip


ROWS = [
    row("wall", 8.0, 14.0),
    row("decode", 3.5, 3.0, "host"),
    row("render", 5.5, 5.0, "host"),
    row("forward", 6.0, 4.0, "device"),
    row("disk", 1.0, 0.1, "disk"),
]


def test_on_a_cpu_the_bound_is_all_cpu_seconds_over_the_cores() -> None:
    bound = bound_of("extract", ROWS, cores=2, on_gpu=False)
    assert bound is not None
    assert bound.bound_seconds == bound.host_seconds == (3 + 5 + 4) / 2
    assert bound.ratio == 6 / 8
    assert bound.limit == "render"
    assert bound.cpu_ratio == 12 / 14


@pytest.mark.parametrize(("threads", "seconds"), [(1, 9.0), (2, 6.0), (16, 6.0), (None, 6.0)])
def test_steps_that_come_one_behind_the_other_are_not_asked_for_more_than_their_threads(
    threads: int | None, seconds: float
) -> None:
    rows = [row("wall", 10.0, 13.0), row("render", 3.0, 3.0, "host"), row("student step", 9.0, 9.0, "device")]
    bound = bound_of("extract", rows, 2, on_gpu=False, threads=threads)
    assert bound is not None
    assert (bound.bound_seconds, bound.limit, bound.host_seconds) == (seconds, "student step", 6.0)


@pytest.mark.parametrize(("cores", "seconds", "limit"), [(1, 8.0, "render"), (2, 6.0, "device"), (16, 6.0, "device")])
def test_on_a_gpu_the_slowest_of_device_host_and_disk_limits(cores: int, seconds: float, limit: str) -> None:
    bound = bound_of("extract", ROWS, cores, on_gpu=True)
    assert bound is not None
    assert (bound.bound_seconds, bound.limit) == (seconds, limit)
    assert (bound.device_seconds, bound.host_seconds, bound.disk_seconds) == (6.0, 8.0 / cores, 1.0)


def test_a_slow_disk_limits() -> None:
    bound = bound_of("extract", [*ROWS[:-1], row("disk", 9.0, 0.1, "disk")], 16, on_gpu=True)
    assert bound is not None
    assert (bound.bound_seconds, bound.limit) == (9.0, "disk")


def test_without_pieces_there_is_no_bound() -> None:
    assert bound_of("distill", ROWS, 2, on_gpu=False) is None
    assert bound_of("extract", ROWS[:1], 2, on_gpu=False) is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_shares_add_up(on_gpu: bool) -> None:
    rows = {r.name: r for r in with_shares(ROWS, on_gpu)}
    host = [rows["decode"].bound_share, rows["render"].bound_share]
    assert rows["wall"].bound_share is None
    if on_gpu:
        assert (sum(host), rows["forward"].bound_share, rows["disk"].bound_share) == (1.0, 1.0, 1.0)
    else:
        assert rows["disk"].bound_share is None
        assert sum([*host, rows["forward"].bound_share]) == pytest.approx(1)


def test_portions_of_a_piece_add_up_and_the_median_repetition_counts() -> None:
    watch = Stopwatch()
    for walls in ([1.0, 2.0], [5.0], [4.0]):
        watch.begin()
        with watch.time("work"):
            assert "work" not in watch.seconds
        assert watch.seconds["work"] > 0
        watch.laps[-1]["work"] = Lap(sum(walls), 2 * sum(walls))
    assert watch.wall("work") == (4.0, 3.0, 5.0)
    [found] = rows_of("extract", watch, 7, {"work": "host"})
    assert (found.images, found.resource, found.cpu_seconds) == (7, "host", 8.0)


def test_a_part_is_taken_out_of_the_whole() -> None:
    watch = Stopwatch(laps=[{"commit": Lap(5.0, 3.0), "encode": Lap(2.0, 2.5)}])
    watch.subtract("commit", "encode")
    watch.subtract("commit", "nothing")
    assert watch.laps == [{"commit": Lap(3.0, 0.5), "encode": Lap(2.0, 2.5)}]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_words_and_picture_say_what_limits(device: str) -> None:
    rows = with_shares(
        [
            *ROWS,
            *(r.model_copy(update={"part": "distill"}) for r in ROWS),
            row("student step", 4.0, 4.0, "device", "distill"),
            row("wall", 20.0, 20.0, None, "live"),
            row("teachers", 6.0, 6.0, None, "live"),
            row("wall", 2.0, 2.0, None, "ladder"),
            row("products", 1.5, 1.5, None, "ladder"),
            row("fit", 1.0, 1.0, None, "probe"),
        ],
        device != "cpu",
    )
    bounds: list[Bound] = [b for p in ("extract", "distill") if (b := bound_of(p, rows, 2, device != "cpu"))]  # type: ignore[arg-type]
    report = BenchReport(
        device=device, machine="a <machine>", cores=2, repeats=5, threads={"extract": 1}, load=0.5, others_cores=0.1,
        extract_ratio=bounds[0].ratio, distill_ratio=bounds[1].ratio, live_speedup=2.5, live_bound=2.5,
        bounds=tuple(bounds), rows=tuple(rows),
    )  # fmt: skip
    said = headlines(report)
    assert bounds[0].limit in said["extract"]
    assert ("target 0.85" if device == "cpu" else "target 0.95") in said["extract"]
    assert "0.75 of it; it is 50% of the student step" in said["ladder"]
    assert "(1.00 of it)" in said["live"]
    html = page(report).decode()
    assert "a &lt;machine&gt;, 2 cores" in html
    assert conditions(report).startswith("a <machine>")
    assert html.count("<svg") == 2
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html) == []
