"""The tables of the report as rows of finished text, so that the template only lays them out."""

from __future__ import annotations

from dataclasses import dataclass

from stages.report.data import EncoderEntry, FeatureRow, ReportData, Score, StudentCurves
from stages.report.summary import PROBE_NAMES, ProbeView, percent, signed

GROUPS = {
    "student": "Students",
    "teacher": "Teachers",
    "encoder": "Other encoders",
    "baseline": "Random initialisation",
}
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One score: text, whether it is the row's best, and a student's difference to the best teacher."""

    text: str
    best: bool = False
    failed: bool = False
    difference: str = ""
    relative: str = ""
    direction: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Row:
    """One benchmark, or the mean over all of them."""

    name: str
    note: str
    detail: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ScoreTable:
    """One probe's table: columns are encoders, grouped by role."""

    probe: str
    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[EncoderEntry, ...]
    rows: tuple[Row, ...]
    mean: Row | None


def score_table(data: ReportData, probe: str) -> ScoreTable:
    """Benchmarks x encoders for one probe; the best of each row is marked, ties at the shown precision too."""
    view = ProbeView(data, probe)
    columns = tuple(e for e in data.ordered() if any(key[1] == e.name for key in view.scores))
    groups: dict[str, int] = {}
    for encoder in columns:
        groups[GROUPS[encoder.role]] = groups.get(GROUPS[encoder.role], 0) + 1
    rows = []
    for bench in data.benchmarks:
        error = view.standard_error(bench.name)
        detail = f"{error[0]:,} test images, ±{error[1]:.1f}" if error else ""
        rows.append(Row(bench.name, bench.note, detail, _cells(view, bench.name, columns)))
    mean = _mean_row(view, columns) if len(data.benchmarks) > 1 else None
    return ScoreTable(probe, _title(view), tuple(groups.items()), columns, tuple(rows), mean)


def _title(view: ProbeView) -> str:
    name = PROBE_NAMES.get(view.probe, view.probe)
    ks = {s.chosen["k"] for s in view.scores.values() if "k" in s.chosen}
    name = f"{name}, k = {ks.pop()}" if len(ks) == 1 else name
    return name[:1].upper() + name[1:] if not name.startswith("k-") else name


def _cells(view: ProbeView, benchmark: str, columns: tuple[EncoderEntry, ...]) -> tuple[Cell, ...]:
    shown = {e.name: percent(v) for e in columns if (v := view.value(benchmark, e.name)) is not None}
    top = max(shown.values(), key=float, default="")
    compared = {
        s.name: next((c for c in view.comparisons(s.name) if c.benchmark == benchmark), None)
        for s in columns
        if s.role == "student"
    }
    cells = []
    for encoder in columns:
        score = view.scores.get((benchmark, encoder.name))
        if score is None:
            cells.append(Cell(NONE, hover="not run"))
        elif score.top1 is None:
            cells.append(Cell("failed", failed=True, hover=score.message))
        else:
            label, against = shown[encoder.name], compared.get(encoder.name)
            hover = chosen_text(score)
            if against is None:
                cells.append(Cell(label, label == top, hover=hover))
            else:
                relative = "" if against.ratio is None else f"{100 * against.ratio:.1f} %"
                cells.append(
                    Cell(
                        label,
                        label == top,
                        difference=signed(against.points),
                        relative=relative,
                        direction=_direction(against.points),
                        hover=hover,
                    )
                )
    return tuple(cells)


def _mean_row(view: ProbeView, columns: tuple[EncoderEntry, ...]) -> Row | None:
    means = {e.name: m for e in columns if (m := view.mean(e.name)) is not None}
    if not means:
        return None
    top = percent(max(means.values()))
    cells = []
    for encoder in columns:
        mean = means.get(encoder.name)
        if mean is None:
            cells.append(Cell(NONE, hover="not every benchmark has a result"))
            continue
        compared = view.comparisons(encoder.name) if encoder.role == "student" else []
        if len(compared) == len(view.data.benchmarks):
            points = sum(c.points for c in compared) / len(compared)
            ratios = [c.ratio for c in compared if c.ratio is not None]
            relative = f"{100 * sum(ratios) / len(ratios):.1f} %" if ratios else ""
            cells.append(Cell(percent(mean), percent(mean) == top, False, signed(points), relative, _direction(points)))
        else:
            cells.append(Cell(percent(mean), percent(mean) == top))
    return Row("Mean", "", "", tuple(cells))


def _direction(points: float) -> str:
    rounded = round(points, 1)
    return "up" if rounded > 0 else "down" if rounded < 0 else "even"


def chosen_text(score: Score) -> str:
    """Hyper-parameters and notes of a result, as `C = 0.1, k = 10`."""
    items = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in score.chosen.items()}
    return ", ".join(f"{k} = {v}" for k, v in items.items())


def failures(data: ReportData) -> list[Score]:
    """The results that failed."""
    return [s for s in data.scores if s.top1 is None]


def remarks(data: ReportData) -> list[tuple[str, str]]:
    """What readers of finished scores have to know: each remark once, with the benchmarks and encoders it is about."""
    about: dict[str, dict[str, dict[str, None]]] = {}
    for score in data.scores:
        if score.message and score.top1 is not None:
            about.setdefault(score.message, {}).setdefault(score.benchmark, {})[score.encoder] = None
    return [
        (message, "; ".join(f"{bench} ({', '.join(names)})" for bench, names in benches.items()))
        for message, benches in about.items()
    ]


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
