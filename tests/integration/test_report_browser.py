"""The report in a real browser: no errors, no requests, no sideways scrolling on a phone, dark and printed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    FeatureRow,
    Origin,
    ReportData,
    Score,
    Series,
    StudentCurves,
)
from stages.report.render import write_report

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.timeout(120),
]


class Browser:
    """A headless Chromium, driven through its debugging pipe (file descriptors 3 and 4, messages end with NUL)."""

    def __init__(self, profile: str) -> None:
        assert CHROMIUM is not None
        read_theirs, write_ours = os.pipe()
        read_ours, write_theirs = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (read_theirs, write_theirs)]
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, 3 + i) for i, end in enumerate(ends)] and None,
            pass_fds=(3, 4),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read_theirs, write_theirs, *ends):
            os.close(end)
        self.writer, self.reader = os.fdopen(write_ours, "wb", buffering=0), os.fdopen(read_ours, "rb")
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command; events that arrive before its answer are kept."""
        number = next(self.numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        """Load a file at a width (below 600 as a phone) and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._read())

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """Parameters of the events of these kinds since the page was opened."""
        return [e["params"] for e in self.events if e.get("method") in methods]

    def close(self) -> None:
        """End the browser and everything that it started."""
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (EOFError, OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.writer.close()
        self.reader.close()

    def _read(self) -> dict[str, Any]:
        raw = b""
        while True:
            byte = self.reader.read(1)
            if not byte:
                raise EOFError("the browser has gone")
            if byte == b"\0":
                return dict(json.loads(raw))
            raw += byte


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
    """Long and many names, two students, all sections."""
    names = [f"benchmark-{i}-with-a-long-name" for i in range(benchmarks)]
    experts = tuple(f"teacher-number-{i}" for i in range(teachers))
    students = ("main", "a-student-with-quite-a-long-name-without-dropping")
    encoders = [EncoderEntry(s, "student", "random") for s in students]
    encoders += [EncoderEntry(t, "teacher") for t in experts] + [EncoderEntry("random", "baseline")]
    scores = [
        Score(b, e.name, "logistic", 0.6 + 0.003 * i + 0.01 * j, 0.6, 1000, {"C": 0.1}, digest="0" * 64)
        for i, b in enumerate(names)
        for j, e in enumerate(encoders)
    ]
    scores[0] = Score(names[0], students[0], "logistic", None, message="a_reason_without_any_space_" * 8)
    epochs = tuple(i / 10 for i in range(1, 101))
    falling = Series(epochs, tuple(1 / (1 + e) for e in epochs))
    columns = {c: falling for t in experts for c in (f"{t}/loss", f"val/{t}/loss", f"{t}/kept")}
    feature = FeatureRow(
        experts[0], "teacher", "train", "vit_giant_patch14_reg4_dinov2.lvd142m", 224, "patch", 1536, (16, 16),
        "float16", 10**12, 10**12, 2, 1_281_167, 12, True, "a" * 64,
    )  # fmt: skip
    return ReportData(
        "a-working-folder-with-a-long-name" * 3,
        tuple(BenchmarkEntry(n, "synthetic: drawn for the test") for n in names),
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


def test_chart_labels_do_not_overlap_or_leave_the_picture(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(tmp_path, wide_data(12, 6)), 1280)
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


def test_dark_mode_and_print(browser: Browser, tmp_path: Path) -> None:
    path = write_report(tmp_path, wide_data(3, 2))
    colours = []
    for scheme in ("light", "dark"):
        browser.open(path, 1280, scheme)
        colours.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) for c in colours)
    assert light > 3 * 230
    assert dark < 3 * 40
    pdf = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
