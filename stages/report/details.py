"""Details as rows of finished text: classes that a student gains and loses most, where training ended, which features were
read."""

from dataclasses import dataclass

from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.stages.report.data import FeatureRow, StudentCurves
from unic_pipe.stages.report.metrics import signed
from unic_pipe.stages.report.summary import percent
from unic_pipe.stages.report.tables import NONE, Cell, Row, direction
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


LOSS_COLUMNS = ("Loss", "Validation loss", "CLS cosine loss", "Patch cosine loss", "Images kept")
BALANCE_COLUMNS = ("CLS spread", "Patch spread", "Share of gradient")
"""Of the same table, where a student was trained by a version that tells them."""


def loss_rows(training: tuple[StudentCurves, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Student, teacher (empty for the total) or set of the validation loss, and means over the last epoch, under
    `LOSS_COLUMNS` and `BALANCE_COLUMNS`."""
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    nothing = (NONE,) * (len(LOSS_COLUMNS) - 2 + len(BALANCE_COLUMNS))
    for student in training:
        rows.append((student.name, "", (_number(student, "loss"), _number(student, "val/loss"), *nothing)))
        for column in student.curves:
            dataset = column.removeprefix("val@").removesuffix("/loss")
            if column == f"val@{dataset}/loss" and "/" not in dataset:
                rows.append((student.name, f"on {dataset}", (NONE, _number(student, column), *nothing)))
        for teacher in student.teachers:
            columns = (f"{teacher}/loss", f"val/{teacher}/loss", f"{teacher}/cls/cosine", f"{teacher}/patch/cosine")
            spreads = [_number(student, f"{teacher}/{token}/spread", "{:.3g}") for token in TOKENS]
            kept, share = (_number(student, f"{teacher}/{what}", "{:.0%}") for what in ("kept", "gradient"))
            cells = (*(_number(student, c) for c in columns), kept, *spreads, share)
            rows.append((student.name, teacher, tuple(cell.replace("%", " %") for cell in cells)))
    return rows


def _number(student: StudentCurves, column: str, form: str = "{:.4f}") -> str:
    value = student.curve(column).last()
    return NONE if value is None else form.format(value)


def feature_cells(row: FeatureRow) -> tuple[str, ...]:
    """The numbers of one row of the features table."""
    bits = row.bits_per_value
    grid = NONE if row.token == "cls" else f"{row.grid[0]} × {row.grid[1]}"
    return (
        f"{row.dim:,}",
        grid,
        f"{row.image_size}",
        row.codec,
        human_bytes(row.size),
        NONE if bits is None else f"{bits:.2f}",
        f"{row.views}",
        f"{row.rows:,}",
        f"{row.bad_rows:,}",
    )


FEATURE_COLUMNS = (
    "Dims", "Grid", "Input px", "Codec", "On disk", "Bits / value", "Views", "Rows", "Bad rows",
)  # fmt: skip
