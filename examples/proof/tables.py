"""The proof's tables, from the results of an evaluation: means over seeds, each with its standard error."""

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

AXES = {
    "linear": ("logistic", "top1"),
    "k-NN": ("knn", "top1_k20"),
    "5 labels a class": ("fewshot", "top1_logistic_5shot"),
}
"""What a column is, by its title: a probe and one of its metrics."""
Scores = Mapping[tuple[str, str], float]
"""Of one encoder: fractions by (benchmark, axis)."""


@dataclass(frozen=True)
class Line:
    """A row of a table: one encoder, or several trainings of one student."""

    title: str
    scores: Sequence[Scores]

    def values(self, key: Callable[[Scores], float | None]) -> list[float]:
        """In per cent, of each training."""
        return [100 * value for scores in self.scores if (value := key(scores)) is not None]


def read_scores(folder: Path) -> dict[str, Scores]:
    """By encoder, what an evaluation has in `results.csv`."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    axes = {metric: axis for axis, metric in AXES.items()}
    with (folder / "evaluations/main/results.csv").open() as file:
        for row in csv.DictReader(file):
            axis = axes.get((row["probe"], row["metric"]))
            if axis and row["status"] == "done":
                found.setdefault(row["encoder"], {})[row["benchmark"], axis] = float(row["value"])
    return found


def line(title: str, found: Mapping[str, Scores], name: str, seeds: Sequence[int] | None = None) -> Line:
    """The row of an encoder, or of a student with these seeds; trainings that are not there are left out."""
    names = [name] if seeds is None else [f"{name}-{seed}" for seed in seeds]
    return Line(title, [found[one] for one in names if one in found])


def best_of(title: str, lines: Sequence[Line]) -> Line:
    """On every axis the best of several encoders: what a student is measured against."""
    every = [one.scores[0] for one in lines]
    return Line(title, [{key: max(scores[key] for scores in every) for key in every[0]}])


def mean_of(title: str, lines: Sequence[Line]) -> Line:
    """On every axis the mean of several encoders."""
    every = [one.scores[0] for one in lines]
    return Line(title, [{key: statistics.fmean(scores[key] for scores in every) for key in every[0]}])


def table(lines: Iterable[Line], benchmarks: Sequence[str], axes: Sequence[str] = tuple(AXES)) -> str:
    """Markdown: a row per line, a column per benchmark and axis and their mean; mean ± standard error in per cent."""
    columns = [(benchmark, axis) for axis in axes for benchmark in benchmarks]
    head = ["", *(f"{benchmark}, {axis}" for benchmark, axis in columns), "mean"]
    rows = [head, ["---", *("---:" for _ in head[1:])]]
    for one in lines:
        cells = [_cell(one.values(lambda scores, key=key: scores.get(key))) for key in columns]  # type: ignore[misc]
        rows.append([one.title, *cells, _cell(one.values(lambda scores: _mean(scores, columns)))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_score(one: Line, benchmarks: Sequence[str], axes: Sequence[str] = tuple(AXES)) -> float:
    """Mean over a row's columns, and over its trainings, in per cent."""
    columns = [(benchmark, axis) for axis in axes for benchmark in benchmarks]
    return statistics.fmean(one.values(lambda scores: _mean(scores, columns)))


def _mean(scores: Scores, columns: Sequence[tuple[str, str]]) -> float | None:
    found = [scores[key] for key in columns if key in scores]
    return statistics.fmean(found) if len(found) == len(columns) else None


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def write_between(file: Path, name: str, text: str) -> None:
    """Put a text between the lines `<!-- NAME -->` and `<!-- /NAME -->` of a document."""
    before, start, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    assert end, f"{file} has no place for {name}"
    file.write_text(f"{before}{start}{text}\n{end}{after}")
