"""The report in a real browser: no errors, no requests, no sideways scrolling on a phone, dark and printed."""

from __future__ import annotations

import base64
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser

from unic_pipe.stages.report.comparison import compare_runs
from unic_pipe.stages.report.comparison_text import write_page
from unic_pipe.stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    FeatureRow,
    Origin,
    ReportData,
    Score,
    Series,
    Skipped,
    StudentCurves,
)
from unic_pipe.stages.report.render import write_report
from unic_pipe.stages.report.runs import load_runs

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    profile = tempfile.mkdtemp(prefix="report-browser-")
    found = Browser(profile)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(profile, ignore_errors=True)


def wide_data(benchmarks: int, teachers: int) -> ReportData:
    """Long and many names, two students, all sections: spreads over seeds, curves, a depth error, something skipped."""
    names = [f"benchmark-{i}-with-a-long-name" for i in range(benchmarks)]
    experts = tuple(f"teacher-number-{i}" for i in range(teachers))
    students = ("main", "a-student-with-quite-a-long-name-without-dropping")
    encoders = [EncoderEntry(s, "student", "random") for s in students]
    encoders += [EncoderEntry(t, "teacher") for t in experts] + [EncoderEntry("random", "baseline")]
    scores = [
        Score(
            b,
            e.name,
            "logistic",
            0.6 + 0.003 * i + 0.01 * j,
            0.6,
            1000,
            {"C": 0.1},
            digest="0" * 64,
            spread=0.004,
            classes=tuple((c, 50, (c * (j + 3) % 11) / 10) for c in range(11)),
        )
        for i, b in enumerate(names)
        for j, e in enumerate(encoders)
    ]
    ks = (1, 5, 10, 20, 100, 200)
    scores += [
        Score(b, e.name, "knn", 0.5, curves={"k": tuple((k, 0.5 + 0.01 * j - 0.001 * i) for i, k in enumerate(ks))})
        for b in names[:4]
        for j, e in enumerate(encoders)
    ]
    if benchmarks > 1:
        scores += [Score("depth", e.name, "logistic", 0.4 + 0.05 * j, metric="rmse") for j, e in enumerate(encoders)]
    axes = ("domain shift", "fine-grained", "long-tail", "CoG", "")
    scores[0] = Score(names[0], students[0], "logistic", None, message="a_reason_without_any_space_" * 8)
    epochs = tuple(i / 10 for i in range(1, 101))
    falling = Series(epochs, tuple(1 / (1 + e) for e in epochs))
    columns = {c: falling for t in experts for c in (f"{t}/loss", f"val/{t}/loss", f"{t}/kept")}
    feature = FeatureRow(
        experts[0], "train", "vit_giant_patch14_reg4_dinov2.lvd142m", 224, "patch", 1536, (16, 16),
        "float16", 10**12, 10**12, 2, 1_281_167, 12, True, "a" * 64,
    )  # fmt: skip
    return ReportData(
        "a-working-folder-with-a-long-name" * 3,
        (
            *(BenchmarkEntry(n, "synthetic: drawn for the test", axes[i % len(axes)]) for i, n in enumerate(names)),
            *((BenchmarkEntry("depth", axis="depth"),) if benchmarks > 1 else ()),
        ),
        tuple(encoders),
        tuple(scores),
        tuple(
            StudentCurves(s, experts, {"loss": falling, "val/loss": falling, "lr": falling, **columns})
            for s in students
        ),
        (feature,),
        (Origin("student", students[1], "b" * 64),),
        "logistic-knn/1",
        ("unic-pipe run --config " + "a/long/path/" * 12,),
        (Skipped("ade20k", "its_files_are_not_at_" + "a/long/path/" * 12),),
    )


@pytest.mark.parametrize(("benchmarks", "teachers"), [(12, 6), (1, 1)])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_renders_quietly_and_never_scrolls_sideways(
    browser: Browser, tmp_path: Path, benchmarks: int, teachers: int, width: int
) -> None:
    path = write_report(tmp_path, wide_data(benchmarks, teachers))
    browser.open(path, width)
    assert browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true })") is None
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.querySelector('h1').getBoundingClientRect().right") <= width
    assert browser.seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    requests = [r["request"]["url"] for r in browser.seen("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
def test_chart_labels_do_not_overlap_or_leave_the_picture(browser: Browser, tmp_path: Path, width: int) -> None:
    browser.open(write_report(tmp_path, wide_data(12, 6)), width)
    overlaps = browser.ask(
        """(() => {
          const found = [];
          for (const svg of document.querySelectorAll('figure svg')) {
            const frame = svg.parentElement.getBoundingClientRect();
            const boxes = [...svg.querySelectorAll('text')].map(t => [t.firstChild.data, t.getBoundingClientRect()]);
            boxes.forEach(([name, a], i) => {
              if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push('outside: ' + name);
              for (const [other, b] of boxes.slice(i + 1))
                if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)
                  found.push(name + ' / ' + other);
            });
          }
          return found;
        })()"""
    )
    assert overlaps == []


def test_wide_tables_scroll_inside_their_boxes_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(tmp_path, wide_data(12, 6)), 390)
    boxes = browser.ask(
        """[...document.querySelectorAll('.scroll')].map(box => {
          const before = box.querySelector('th:first-child').getBoundingClientRect().left;
          box.scrollLeft = 1e6;
          const heads = [...box.querySelectorAll('tbody th[scope=row]')];
          return {moved: box.scrollLeft, right: box.getBoundingClientRect().right,
                  names: heads.every(h => Math.abs(h.getBoundingClientRect().left - before) < 2)};
        })"""
    )
    assert any(box["moved"] > 100 for box in boxes)
    assert all(box["right"] <= 390 for box in boxes)
    assert all(box["names"] for box in boxes), "benchmark names stay in sight"
    sizes = browser.ask("[...document.querySelectorAll('body *')].map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert min(sizes) >= 11


def test_comparison_of_runs_fits_a_phone_and_a_sheet(browser: Browser, tmp_path: Path) -> None:
    rows = [
        {
            "benchmark": f"benchmark-{i}-with-a-long-name", "encoder": f"encoder-{j}-with-a-long-name", "probe": "knn",
            "metric": "top1_k20", "value": 0.5 + j / 100, "seed": 0, "encoder_digest": "e" * 64,
            "dataset_digest": "d" * 64, "protocol": "logistic-knn/1",
        }
        for i in range(4)
        for j in range(5)
    ]  # fmt: skip
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "results.parquet")
    found = compare_runs(load_runs([tmp_path / "first", tmp_path / "second"]))
    write_page(tmp_path / "compare.html", found)
    browser.open(tmp_path / "compare.html", 390, "dark")
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    browser.open(tmp_path / "compare.html", 1280)
    assert browser.ask("document.querySelector('table').getBoundingClientRect().right") <= 1280
    assert printed_too_wide(browser) == []


def printed_too_wide(browser: Browser) -> list[str]:
    """Names of the boxes of the open page whose tables or pictures are wider than an A4 sheet between its margins."""
    paper = round((210 - 2 * 14) / 25.4 * 96)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.call("Emulation.setDeviceMetricsOverride", width=paper, height=900, deviceScaleFactor=1, mobile=False)
    found: list[str] = browser.ask(
        f"[...document.querySelectorAll('.scroll table, figure svg, pre')].filter(e => e.offsetParent !== null &&"
        f" e.getBoundingClientRect().right > {paper} + 1).map(e => e.parentElement.getAttribute('aria-label'))"
    )
    return found


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, as WCAG 2 defines it."""
    channels = [int(c) / 255 for c in re.findall(r"[0-9]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Browser, tmp_path: Path, scheme: str) -> None:
    browser.open(write_report(tmp_path, wide_data(3, 2)), 1280, scheme)
    colours = browser.ask(
        """Object.fromEntries(['body', 'h1 code', '.intro', '.note', '.up', '.down', '.failed', 'svg text.label',
          'svg text.faint'].map(q => [q, document.querySelector(q)]).filter(([q, e]) => e).map(([q, e]) =>
          [q, getComputedStyle(e)[e instanceof SVGElement ? 'fill' : 'color']]))"""
    )
    paper = luminance(browser.ask("getComputedStyle(document.body).backgroundColor"))
    assert paper > 0.9 if scheme == "light" else paper < 0.02
    for place, colour in colours.items():
        bright, dark = sorted((luminance(colour), paper), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{place}: {colour}"
    assert len(colours) >= 8


@pytest.mark.slow
def test_print_is_dark_on_white_and_cuts_no_table(browser: Browser, tmp_path: Path) -> None:
    path = write_report(tmp_path, wide_data(12, 6))
    browser.open(path, 1280, "dark")
    assert printed_too_wide(browser) == []
    assert luminance(browser.ask("getComputedStyle(document.body).color")) < 0.05
    rows = browser.ask("[...document.querySelectorAll('tr')].map(r => getComputedStyle(r).breakInside)")
    assert set(rows) == {"avoid"}, "no row is torn between two pages"
    heads = browser.ask("[...document.querySelectorAll('thead')].map(h => getComputedStyle(h).display)")
    assert set(heads) == {"table-header-group"}, "a table's head is repeated on its next page"
    pdf = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
