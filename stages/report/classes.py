"""Where a student gains and loses most, class by class, against the best teacher of each benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from unic_pipe.stages.report.metrics import signed
from unic_pipe.stages.report.summary import percent
from unic_pipe.stages.report.tables import Cell, Row, direction
from unic_pipe.stages.report.view import ProbeView

SHOWN = 5


@dataclass(frozen=True)
class ClassTable:
    """The classes of one benchmark with the largest differences, from lost to gained."""

    benchmark: str
    teacher: str
    count: int
    rows: tuple[Row, ...]
    """Of each class: test images, the student's accuracy, the teacher's, the difference."""


def class_tables(view: ProbeView, student: str) -> list[ClassTable]:
    """For every benchmark where both are known class by class: the five most lost and the five most gained classes."""
    tables = []
    for bench in view.benchmarks:
        best, score = view.best_teacher(bench.name), view.scores.get((bench.name, student))
        if best is None or score is None:
            continue
        names = dict(zip((number for number, _, _ in score.classes), score.class_names, strict=False))
        theirs = {number: value for number, _, value in view.scores[bench.name, best[0]].classes}
        each = sorted(
            (value - theirs[number], number, samples, value)
            for number, samples, value in score.classes
            if number in theirs
        )
        shown = each if len(each) <= 2 * SHOWN else [*each[:SHOWN], *each[-SHOWN:]]
        rows = tuple(
            Row(
                names.get(number, str(number)),
                cells=(
                    *map(Cell, (f"{samples:,}", percent(value), percent(theirs[number]))),
                    Cell(signed(100 * points), direction=direction(round(100 * points, 1))),
                ),
            )
            for points, number, samples, value in shown
        )
        if rows:
            tables.append(ClassTable(bench.name, best[0], len(each), rows))
    return tables
