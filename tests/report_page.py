"""A page as a browser sees it, and data for one."""

from __future__ import annotations

import math
from html.parser import HTMLParser

from unic_pipe.schemas.probes import PROTOCOL
from unic_pipe.stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    FeatureRow,
    Origin,
    ReportData,
    Score,
    Series,
    StudentCurves,
)

VOID = {"meta", "link", "br", "img", "hr", "input"}
VALUES = {
    "digits": {"main": 0.9389, "lite0": 0.9500, "lite1": 0.9306, "main-random": 0.8028},
    "shifted": {"main": 0.8917, "lite0": 0.8833, "lite1": 0.8750, "main-random": 0.6194},
    "shapes": {"main": 0.9650, "lite0": 0.9900, "lite1": 0.9850, "main-random": 0.9125},
}
ENCODERS = (
    EncoderEntry("main", "student", "main-random"),
    EncoderEntry("lite0", "teacher"),
    EncoderEntry("lite1", "teacher"),
    EncoderEntry("main-random", "baseline"),
)


class Page(HTMLParser):
    """Checks nesting while parsing, and collects tables, ids, links, texts and tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def hex64(text: str) -> str:
    return (text.encode().hex() * 64)[:64]


def scores(values: dict[str, dict[str, float]], probe: str = "logistic") -> tuple[Score, ...]:
    return tuple(Score(b, e, probe, v, None, 360, {"C": 0.1}) for b, row in values.items() for e, v in row.items())


def curves(name: str = "main", teachers: tuple[str, ...] = ("lite0", "lite1"), rows: int = 40) -> StudentCurves:
    epochs = tuple((i + 1) / 10 for i in range(rows))
    falling = Series(epochs, tuple(0.3 + 0.4 * math.exp(-e) for e in epochs))
    columns = {"loss": falling, "val/loss": Series((1.0, 2.0, 3.0, 4.0), (0.5, 0.4, 0.36, 0.35)), "lr": falling}
    for teacher in teachers:
        columns |= {f"{teacher}/loss": falling, f"{teacher}/kept": Series(epochs, (0.75,) * rows)}
        columns |= {f"{teacher}/cls/spread": Series(epochs, (1.25,) * rows)}
        columns |= {f"{teacher}/gradient": Series(epochs, (0.5,) * rows)}
    return StudentCurves(name, teachers, columns)


def report_data() -> ReportData:
    feature = FeatureRow(
        "lite0", "train", "tf_efficientnet_lite0", 96, "patch", 320, (3, 3), "int8", 3_000_000,
        1078 * 320 * 9 * 2, 2, 1078, 1, True, hex64("f"),
    )  # fmt: skip
    return ReportData(
        title="demo",
        benchmarks=(BenchmarkEntry("digits"), BenchmarkEntry("shifted"), BenchmarkEntry("shapes", "synthetic")),
        encoders=ENCODERS,
        scores=scores(VALUES) + scores(VALUES, "knn"),
        training=(curves(),),
        features=(feature,),
        origins=(Origin("student", "main", hex64("s")),),
        protocol=PROTOCOL,
        commands=("unic-pipe run",),
    )
