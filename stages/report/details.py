"""The tables of what scores rest on, as rows of finished text: where training ended, which features were read."""

from __future__ import annotations

from dataclasses import dataclass

from unic_pipe.stages.report.data import FeatureRow, StudentCurves
from unic_pipe.stages.report.tables import NONE


@dataclass(frozen=True)
class LossRow:
    """Means over the last epoch: a student's total (teacher is empty) or one of its teachers."""

    student: str
    teacher: str
    values: tuple[str, ...]


LOSS_COLUMNS = ("Loss", "Validation loss", "CLS cosine loss", "Patch cosine loss", "Images kept")


def loss_rows(training: tuple[StudentCurves, ...]) -> list[LossRow]:
    """Where training ended, for every student and each of its teachers."""
    rows = []
    for student in training:
        total = (_number(student, "loss"), _number(student, "val/loss"), NONE, NONE, NONE)
        rows.append(LossRow(student.name, "", total))
        for teacher in student.teachers:
            columns = (f"{teacher}/loss", f"val/{teacher}/loss", f"{teacher}/cls/cosine", f"{teacher}/patch/cosine")
            kept = student.curve(f"{teacher}/kept").last()
            share = NONE if kept is None else f"{100 * kept:.0f} %"
            rows.append(LossRow(student.name, teacher, (*(_number(student, c) for c in columns), share)))
    return rows


def _number(student: StudentCurves, column: str) -> str:
    value = student.curve(column).last()
    return NONE if value is None else f"{value:.4f}"


def feature_cells(row: FeatureRow) -> tuple[str, ...]:
    """The numbers of one row of the features table."""
    bits = row.bits_per_value
    grid = NONE if row.token == "cls" else f"{row.grid[0]} × {row.grid[1]}"
    return (
        f"{row.dim:,}",
        grid,
        f"{row.image_size}",
        row.codec,
        size_text(row.size),
        NONE if bits is None else f"{bits:.2f}",
        f"{row.views}",
        f"{row.rows:,}",
        f"{row.bad_rows:,}",
    )


FEATURE_COLUMNS = (
    "Dims", "Grid", "Input px", "Codec", "On disk", "Bits / value", "Views", "Rows", "Bad rows",
)  # fmt: skip


def size_text(size: int) -> str:
    """Bytes for people, in decimal units: 1234567 -> `1.23 MB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}"
