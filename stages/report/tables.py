"""The score tables of the report as rows of finished text, so that the template only lays them out."""

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from unic_pipe.stages.report.data import BenchmarkEntry, EncoderEntry, ReportData, Score
from unic_pipe.stages.report.metrics import METRICS, Metric, signed
from unic_pipe.stages.report.summary import capital, mean_points, mean_ratio, percent, probe_name
from unic_pipe.stages.report.view import Comparison, ProbeView

GROUPS = {
    "student": "Students",
    "teacher": "Teachers",
    "encoder": "Other encoders",
    "baseline": "Random initialisation",
}
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One score: text, whether it is the row's best, its spread over seeds, and a difference to another score."""

    text: str
    best: bool = False
    failed: bool = False
    difference: str = ""
    relative: str = ""
    direction: str = ""
    hover: str = ""
    spread: str = ""
    error: str = ""
    """Of a score without a spread: its binomial standard error."""


@dataclass(frozen=True)
class Row:
    """One benchmark, or a summary over all of them."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """An encoder at the head of a table; `role` is empty where it makes no difference."""

    name: str
    role: str = ""
    size: str = ""
    """Its parameters and speed, `4.7 M, 33 images/s`, where they are known."""


@dataclass(frozen=True)
class ScoreTable:
    """Benchmarks x encoders as finished text, for the page, for Markdown and for a terminal."""

    title: str
    columns: tuple[Column, ...]
    sections: tuple[tuple[str, tuple[Row, ...]], ...]
    """Axis (empty when benchmarks have none) and its benchmarks."""
    means: tuple[Row, ...]
    """The mean accuracy and the mean log-odds; empty for one benchmark."""
    groups: tuple[tuple[str, int], ...] = ()
    """Names of neighbouring columns together, and how many they are: roles, or the runs that they are from."""
    of_runs: bool = False
    """Whether the groups are runs."""
    mixed: bool = False
    """Whether some scores are not top-1; their rows say what they measure."""
    reference: str = ""
    """What the differences between runs are to; empty for a single run."""
    notes: tuple[str, ...] = ()
    """Why marked scores are not compared."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The benchmarks of all sections."""
        return tuple(row for _, rows in self.sections for row in rows)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The group of each column."""
        return tuple(name for name, span in self.groups for _ in range(span))


def score_table(data: ReportData, probe: str) -> ScoreTable:
    """Benchmarks x encoders for one probe; the best of each row is marked, ties at the shown precision too."""
    view = ProbeView(data, probe)
    columns = tuple(e for e in data.ordered() if any(key[1] == e.name for key in view.scores))
    groups = Counter(GROUPS[encoder.role] for encoder in columns)
    others = "other" if any(b.axis for b in view.benchmarks) else ""
    sections = tuple(
        (axis or others, tuple(_row(view, bench, columns) for bench in found))
        for axis, found in groupby(view.benchmarks, key=lambda b: b.axis)
    )
    means = _mean_rows(view, columns) if len(view.accuracies) > 1 else ()
    mixed = any(view.metric(b.name) is not METRICS["top1"] for b in view.benchmarks)
    heads = tuple(Column(encoder.name, encoder.role, _size(encoder)) for encoder in columns)
    return ScoreTable(probe_title(view), heads, sections, means, tuple(groups.items()), mixed=mixed)


def _size(encoder: EncoderEntry) -> str:
    return ", ".join(
        filter(None, (millions(encoder.parameters), f"{encoder.speed:,.3g} images/s" * bool(encoder.speed)))
    )


def millions(parameters: int) -> str:
    """A number of parameters as `4.7 M`; empty where it is not known."""
    return f"{parameters / 1e6:.1f} M" if parameters else ""


def probe_title(view: ProbeView) -> str:
    """The probe's name as a heading, with k where it is the same everywhere."""
    name = probe_name(view.probe)
    ks = {s.chosen["k"] for s in view.scores.values() if "k" in s.chosen}
    return capital(f"{name}, k = {ks.pop()}" if len(ks) == 1 else name)


def _row(view: ProbeView, bench: BenchmarkEntry, columns: tuple[EncoderEntry, ...]) -> Row:
    metric, samples = view.metric(bench.name), view.samples(bench.name)
    measure = "" if metric is METRICS["top1"] else f"{metric.title} in {metric.unit}"
    measure += "" if metric.higher else ", lower is better"
    size = f"{samples:,} test images" if samples else ""
    detail = "; ".join(part for part in (measure, size) if part)
    return Row(bench.name, _cells(view, bench.name, metric, columns), bench.note, detail)


def _cells(view: ProbeView, benchmark: str, metric: Metric, columns: tuple[EncoderEntry, ...]) -> tuple[Cell, ...]:
    shown = {e.name: metric.show(v) for e in columns if (v := view.value(benchmark, e.name)) is not None}
    top = (max if metric.higher else min)(shown.values(), key=float, default="")
    best = view.best_teacher(benchmark)
    cells = []
    for encoder in columns:
        score = view.scores.get((benchmark, encoder.name))
        if score is None:
            cells.append(Cell(NONE, hover="not run"))
        elif score.value is None:
            cells.append(Cell("failed", failed=True, hover=score.message))
        else:
            against = view.comparison(benchmark, encoder.name, best[0]) if encoder.role == "student" and best else None
            label = shown[encoder.name]
            spread = "" if score.spread is None else f"±{metric.show(score.spread)}"
            error = view.standard_error(score) if not spread else None
            said = spread, "" if error is None else f"±{error:.1f}"
            cells.append(Cell(label, label == top, False, *difference(against), chosen_text(score), *said))
    return tuple(cells)


def difference(against: Comparison | None) -> tuple[str, str, str]:
    """A comparison as text, relative text and direction (`up` is for the better); empty without one."""
    if against is None:
        return "", "", ""
    relative = "" if against.ratio is None else f"{100 * against.ratio:.1f} %"
    return against.metric.signed(against.value - against.best), relative, direction(against.better)


def direction(better: float) -> str:
    """`up`, `down` or `even`, of a rounded difference."""
    return "up" if better > 0 else "down" if better < 0 else "even"


def _mean_rows(view: ProbeView, columns: tuple[EncoderEntry, ...]) -> tuple[Row, ...]:
    means = {e.name: m for e in columns if (m := view.mean(e.name)) is not None}
    if not means:
        return ()
    odds = {name: view.mean_log_odds(name) or 0.0 for name in means}
    best, best_odds = percent(max(means.values())), f"{max(odds.values()):.2f}"
    missing = Cell(NONE, hover="not every benchmark has a result")
    first, second = [], []
    for encoder in columns:
        name = encoder.name
        if name not in means:
            first.append(missing)
            second.append(missing)
            continue
        text, log = percent(means[name]), f"{odds[name]:.2f}".replace("-", "−")
        compared = view.comparisons(name) if encoder.role == "student" else []
        compared = [c for c in compared if c.metric.accuracy]
        whole = compared if len(compared) == len(view.accuracies) else []
        first.append(Cell(text, text == best, False, *mean_difference(whole)))
        second.append(Cell(log, log == best_odds.replace("-", "−")))
    count = len(view.accuracies)
    note = "" if count == len(view.benchmarks) else f"of {count} accuracies"
    return Row("Mean", tuple(first), note), Row("Mean log-odds", tuple(second), note)


def mean_difference(compared: list[Comparison]) -> tuple[str, str, str]:
    """The mean of comparisons of accuracies, in the same form; empty of nothing."""
    points, ratio = mean_points(compared), mean_ratio(compared)
    if points is None:
        return "", "", ""
    return signed(points), "" if ratio is None else f"{100 * ratio:.1f} %", direction(round(points, 1))


def chosen_text(score: Score) -> str:
    """Hyper-parameters and notes of a result, as `C = 0.1, k = 10`."""
    items = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in score.chosen.items()}
    if score.spread is not None:
        items["seeds"] = str(score.seeds)
    return ", ".join(f"{k} = {v}" for k, v in items.items())


def failures(data: ReportData) -> list[Score]:
    """The results that failed."""
    return [s for s in data.scores if s.value is None]


def remarks(data: ReportData) -> list[tuple[str, str]]:
    """What readers of finished scores have to know: each remark once, with the benchmarks and encoders it is about."""
    about: dict[str, dict[str, dict[str, None]]] = {}
    for score in data.scores:
        if score.message and score.value is not None:
            about.setdefault(score.message, {}).setdefault(score.benchmark, {})[score.encoder] = None
    return [
        (message, "; ".join(f"{bench} ({', '.join(names)})" for bench, names in benches.items()))
        for message, benches in about.items()
    ]


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
