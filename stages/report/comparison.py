"""Puts runs side by side: benchmarks x encoders by run, and differences only where they mean something.

A score of another protocol version or on other data is shown and marked, never compared.
"""

from collections.abc import Collection, Sequence

from unic_pipe.schemas.base import short
from unic_pipe.schemas.comparisons import (
    ComparedCell,
    ComparedColumn,
    ComparedRow,
    ComparedRun,
    ComparedTable,
    RunComparison,
)
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.stages.report.metrics import METRICS, named_metric
from unic_pipe.stages.report.runs import Result, Run
from unic_pipe.stages.report.scores import SHOWN_K
from unic_pipe.stages.report.view import average

ORDER = ("student", "teacher", "encoder", "baseline")
ALL = "all"


def compare_runs(runs: Sequence[Run], encoders: Collection[str] = (), metrics: Collection[str] = ()) -> RunComparison:
    """Tables for every probe and metric of the runs.

    `encoders`: only these names; `metrics`: only these, `all` for all; by default each probe's first of `METRICS`, or
    k-NN's at k = 20. Raises UserError: no run has such an encoder or metric.
    """
    _known("encoder", encoders, {r.encoder for run in runs for r in run.results})
    _known("metric", [m for m in metrics if m != ALL], {r.metric for run in runs for r in run.results})
    kept = [
        Run(run.label, run.path, tuple(r for r in run.results if not encoders or r.encoder in encoders), run.roles)
        for run in runs
    ]
    probes = sorted({r.probe for run in kept for r in run.results}, key=lambda p: (p == "knn", p))
    tables = []
    for probe in probes:
        found = dict.fromkeys(r.metric for run in kept for r in run.results if r.probe == probe)
        chosen = [m for m in found if m in metrics or ALL in metrics] if metrics else _main(list(found))
        tables += [_table(kept, probe, metric) for metric in chosen]
    problems = any(cell.problem for table in tables for row in table.rows for cell in row.cells)
    described = tuple(
        ComparedRun(label=r.label, path=str(r.path), protocols=tuple(sorted({x.protocol for x in r.results})))
        for r in runs
    )
    return RunComparison(runs=described, tables=tuple(tables), comparable=not problems)


def _known(kind: str, wanted: Collection[str], known: Collection[str]) -> None:
    for name in wanted:
        if name not in known:
            raise UserError(f"No run has the {kind} {name}{did_you_mean(name, sorted(known))}")


def _main(metrics: Sequence[str]) -> list[str]:
    """What a probe is judged by: the measures of benchmarks that it was run on, without those of detail."""
    judged = [m for m in METRICS if m in metrics and m != "per_class"]
    if judged:
        return judged
    curve = [m for m in metrics if m.startswith("top1_")]
    wanted = f"top1_k{SHOWN_K}"
    return [wanted] if wanted in curve else (curve or list(metrics))[:1]


def _table(runs: Sequence[Run], probe: str, metric: str) -> ComparedTable:
    wanted = [[r for r in run.results if (r.probe, r.metric) == (probe, metric)] for run in runs]
    columns = _columns(runs, wanted)
    results = {(run.label, r.encoder, r.benchmark): r for run, found in zip(runs, wanted, strict=True) for r in found}
    rows = []
    for benchmark in dict.fromkeys(r.benchmark for found in wanted for r in found):
        row = [results.get((c.run, c.encoder, benchmark)) for c in columns]
        rows.append(_row(benchmark, row, columns))
    rows.sort(key=lambda row: row.benchmark)
    mean, count = _mean(rows, columns) if named_metric(metric).accuracy else ((), 0)
    return ComparedTable(probe=probe, metric=metric, columns=tuple(columns), rows=tuple(rows), mean=mean, mean_of=count)


def _columns(runs: Sequence[Run], wanted: Sequence[Sequence[Result]]) -> list[ComparedColumn]:
    """Encoders run by run, students first; each refers to its namesake in the first run, or to the first column."""
    columns: list[ComparedColumn] = []
    for run, found in zip(runs, wanted, strict=True):
        names = dict.fromkeys(r.encoder for r in found)

        def rank(name: str, run: Run = run) -> int:
            role = run.roles.get(name, "")
            return ORDER.index(role) if role in ORDER else len(ORDER)

        first = {c.encoder: place for place, c in enumerate(columns) if c.run == runs[0].label}
        columns += [
            ComparedColumn(
                run=run.label,
                encoder=name,
                role=run.roles.get(name, ""),
                encoder_digests=tuple(sorted({r.encoder_digest for r in found if r.encoder == name})),
                reference=None if run is runs[0] or not first else first.get(name, 0),
            )
            for name in sorted(names, key=rank)
        ]
    return columns


def _row(benchmark: str, results: Sequence[Result | None], columns: Sequence[ComparedColumn]) -> ComparedRow:
    basis = next(r for r in results if r is not None)
    problems = [_problem(r, basis) for r in results]
    cells = []
    for result, column, problem in zip(results, columns, problems, strict=True):
        other = None if column.reference is None else results[column.reference]
        fair = other is not None and not problem and column.reference is not None and not problems[column.reference]
        cells.append(
            ComparedCell(
                value=None if result is None else result.value,
                spread=None if result is None else result.spread,
                difference=result.value - other.value if result is not None and other is not None and fair else None,
                problem=problem,
            )
        )
    return ComparedRow(
        benchmark=benchmark, protocol=basis.protocol, dataset_digest=basis.dataset_digest, cells=tuple(cells)
    )


def _problem(result: Result | None, basis: Result) -> str:
    if result is None:
        return ""
    if result.protocol != basis.protocol:
        return f"protocol {result.protocol}, not {basis.protocol}"
    if result.dataset_digest != basis.dataset_digest:
        return f"other data: {short(result.dataset_digest)}, not {short(basis.dataset_digest)}"
    return ""


def _mean(rows: Sequence[ComparedRow], columns: Sequence[ComparedColumn]) -> tuple[tuple[ComparedCell, ...], int]:
    whole = [row for row in rows if all(c.value is not None and not c.problem for c in row.cells)]
    if len(whole) < 2:
        return (), len(whole)
    means = [average(row.cells[place].value or 0.0 for row in whole) or 0.0 for place in range(len(columns))]
    cells = (
        ComparedCell(value=mean, difference=None if c.reference is None else mean - means[c.reference])
        for mean, c in zip(means, columns, strict=True)
    )
    return tuple(cells), len(whole)
