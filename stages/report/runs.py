"""Reads finished evaluations from wherever they are: a working folder, an evaluation's folder, a results table alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unic_pipe.pipeline.workspace.results import FOLDER, RESULTS, TABLE, read_record, read_results
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.evaluations import RESULT_COLUMNS

SPREAD = "_spread"
EVALUATE = "Make it: unic-pipe evaluate"


@dataclass(frozen=True)
class Result:
    """One metric of one probe of one encoder on one benchmark: the mean over its seeds."""

    benchmark: str
    encoder: str
    probe: str
    metric: str
    value: float
    spread: float | None
    """Standard deviation over seeds; None for one seed."""
    encoder_digest: str
    dataset_digest: str
    protocol: str


@dataclass(frozen=True)
class Run:
    """One evaluation: its results in the order of its table, and the roles of its encoders where they are known."""

    label: str
    path: Path
    results: tuple[Result, ...]
    roles: dict[str, str]


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run, in order, under labels that tell them apart.
    Raises UserError: a path holds no results, or several; a table is damaged or has other columns; a run is given
    twice."""
    tables = [results_table_of(path) for path in paths]
    places = [table.resolve() for table in tables]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{path} is given twice: both mean {place}.", "Name each run once.")
    labels = [_label(path, table) for path, table in zip(paths, tables, strict=True)]
    unique = [label if labels.count(label) == 1 else str(path) for label, path in zip(labels, paths, strict=True)]
    return [_load(label, table) for label, table in zip(unique, tables, strict=True)]


def results_table_of(path: Path) -> Path:
    """The `results.parquet` that a path stands for.
    Raises UserError: there is none, or the working folder holds several evaluations."""
    if path.is_file():
        return results_table_of(path.parent) if path.suffix in (".yaml", ".yml", ".html") else path
    if not path.exists():
        raise UserError(
            f"There is no {path}.", "A run is a working folder, an evaluation's folder or a results.parquet."
        )
    if (path / TABLE).is_file():
        return path / TABLE
    folder = path if path.name == FOLDER else path / FOLDER
    named = [p for p in sorted(folder.glob("*")) if p.is_symlink() and (p / TABLE).is_file()]
    if len(named) == 1:
        return named[0] / TABLE
    if named:
        raise UserError(f"{path} holds several evaluations.", f"Name one: {' or '.join(str(p) for p in named)}")
    raise UserError(f"{path} holds no finished evaluation ({FOLDER}/NAME/{TABLE}).", EVALUATE)


def _label(path: Path, table: Path) -> str:
    """What people call the run: the name of the folder that they named, a table's by the folder that holds it."""
    folder = table.parent if path.is_file() else path
    name = folder.resolve().name if folder.name in ("", ".", "..") else folder.name
    return folder.resolve().parent.name if name == FOLDER else name


def _load(label: str, table: Path) -> Run:
    paths = sorted((table.parent / RESULTS).glob("*.json"))
    roles: dict[str, str] = {record.encoder: record.role for path in paths if (record := read_record(path)) is not None}
    results = _seeds_folded(_rows(table), table)
    if not results:
        raise UserError(f"{table} holds no finished result.", EVALUATE)
    return Run(label, table, tuple(results), roles)


def _rows(table: Path) -> list[dict[str, object]]:
    try:
        found = read_results(table)
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}.", EVALUATE) from None
    missing = [column for column in RESULT_COLUMNS if column not in found.column_names]
    if missing:
        raise UserError(
            f"{table} lacks {', '.join(missing)}: without them its scores cannot be told to be comparable.",
            "It is from another program or an old version; evaluate again: unic-pipe evaluate",
        )
    rows: list[dict[str, object]] = found.select(list(RESULT_COLUMNS)).to_pylist()
    return rows


def _seeds_folded(rows: Sequence[dict[str, object]], table: Path) -> list[Result]:
    """One result for the rows that differ in nothing but seed and value.

    A row without a seed is the mean over those that have one; `<metric>_spread` its standard deviation.
    """
    groups: dict[tuple[str, ...], list[tuple[bool, float]]] = {}
    for row in rows:
        value = row["value"]
        key = tuple(str(row[c]) for c in RESULT_COLUMNS if c not in ("value", "seed"))
        if not isinstance(value, float) or not math.isfinite(value):
            raise UserError(f"{table}: {key[0]}, {key[1]}, {key[3]} has no finite value.", EVALUATE)
        groups.setdefault(key, []).append((row["seed"] is None, value))
    found: list[Result] = []
    seen: set[tuple[str, ...]] = set()
    for key, values in groups.items():
        benchmark, encoder, probe, metric, encoder_digest, dataset_digest, protocol = key
        if metric.endswith(SPREAD) and all(averaged for averaged, _ in values):
            continue
        if key[:4] in seen:
            raise UserError(f"{table} has two results of {encoder} on {benchmark} ({probe}, {metric}).", EVALUATE)
        seen.add(key[:4])
        deviation = groups.get((*key[:3], metric + SPREAD, *key[4:]))
        mean, spread = _mean(values)
        spread = deviation[0][1] if deviation else spread
        found.append(Result(benchmark, encoder, probe, metric, mean, spread, encoder_digest, dataset_digest, protocol))
    return found


def _mean(values: Sequence[tuple[bool, float]]) -> tuple[float, float | None]:
    """The mean that stands in the table, else that of the seeds; and their standard deviation where there are several."""
    seeds = [value for averaged, value in values if not averaged]
    means = [value for averaged, value in values if averaged]
    mean = means[0] if means else math.fsum(seeds) / len(seeds)
    if len(seeds) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in seeds) / (len(seeds) - 1))
