"""The tables of what scores rest on, as rows of finished text: where training ended, which features were read."""

from __future__ import annotations

from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.stages.report.data import FeatureRow, StudentCurves
from unic_pipe.stages.report.tables import NONE

LOSS_COLUMNS = ("Loss", "Validation loss", "CLS cosine loss", "Patch cosine loss", "Images kept")


def loss_rows(training: tuple[StudentCurves, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Student, teacher (empty for the total) and means over the last epoch, under `LOSS_COLUMNS`."""
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    for student in training:
        total = (_number(student, "loss"), _number(student, "val/loss"), NONE, NONE, NONE)
        rows.append((student.name, "", total))
        for teacher in student.teachers:
            columns = (f"{teacher}/loss", f"val/{teacher}/loss", f"{teacher}/cls/cosine", f"{teacher}/patch/cosine")
            kept = student.curve(f"{teacher}/kept").last()
            share = NONE if kept is None else f"{100 * kept:.0f} %"
            rows.append((student.name, teacher, (*(_number(student, c) for c in columns), share)))
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
        human_bytes(row.size),
        NONE if bits is None else f"{bits:.2f}",
        f"{row.views}",
        f"{row.rows:,}",
        f"{row.bad_rows:,}",
    )


FEATURE_COLUMNS = (
    "Dims", "Grid", "Input px", "Codec", "On disk", "Bits / value", "Views", "Rows", "Bad rows",
)  # fmt: skip
