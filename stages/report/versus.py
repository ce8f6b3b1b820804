"""The student against every teacher, and against the best teacher of each benchmark."""

from __future__ import annotations

from unic_pipe.stages.report.tables import NONE, Cell, Column, Row, ScoreTable, difference, mean_difference
from unic_pipe.stages.report.view import Comparison, ProbeView


def versus_tables(view: ProbeView) -> list[ScoreTable]:
    """For every student with a result: a row per benchmark, a column per teacher, and the best teacher."""
    teachers = [
        t.name
        for t in view.data.named("teacher")
        if any(view.value(b.name, t.name) is not None for b in view.benchmarks)
    ]
    found = []
    for student in view.data.named("student"):
        if not teachers or not view.comparisons(student.name):
            continue
        others = ["", *teachers]
        against = [{c.benchmark: c for c in view.comparisons(student.name, other)} for other in others]
        rows = []
        for bench in view.benchmarks:
            cells = tuple(
                _versus_cell(column.get(bench.name), named=not other)
                for other, column in zip(others, against, strict=True)
            )
            rows.append(Row(bench.name, cells))
        means = []
        for column in against:
            full = [c for c in column.values() if c.metric.accuracy]
            text, relative, way = mean_difference(full if len(full) == len(view.accuracies) else [])
            means.append(Cell(text or NONE, relative=relative, direction=way))
        mean = (Row("Mean", tuple(means)),) if len(view.accuracies) > 1 else ()
        heads = tuple(map(Column, ("best teacher", *teachers)))
        found.append(ScoreTable(student.name, heads, (("", tuple(rows)),), mean))
    return found


def _versus_cell(compared: Comparison | None, named: bool) -> Cell:
    if compared is None:
        return Cell(NONE, hover="not both have a result")
    text, relative, way = difference(compared)
    spread = "" if compared.spread is None else f"±{compared.metric.show(compared.spread)}"
    return Cell(text, False, False, compared.teacher if named else "", relative, way, "", spread)
