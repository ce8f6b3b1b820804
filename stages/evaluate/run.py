"""The evaluate stage: every result that is not fresh, one after the other, each durable before the next; then their table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from unic_pipe.pipeline.cache.tables import sealed_table
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.storage import LocalStore, Store, get_or_none, sha256
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.results import (
    CLASS_TABLE,
    FOLDER,
    RUNS,
    TABLE,
    current_record,
    dataset_digest,
    equal_results,
    probe_key,
    result_key,
)
from unic_pipe.pipeline.workspace.targets import array_to_bytes
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError
from unic_pipe.schemas.evaluations import CLASS_COLUMNS, RESULT_COLUMNS, ResultDefinition, ResultRecord, Role
from unic_pipe.stages.evaluate.outcome import Outcome, Setting, code_of
from unic_pipe.stages.evaluate.tasks import Load

_TYPES = dict.fromkeys(("seed", "class", "samples"), pa.int64()) | dict.fromkeys(("value", "accuracy"), pa.float64())
_SCHEMA, _CLASS_SCHEMA = (
    pa.schema([(column, _TYPES.get(column, pa.string())) for column in columns])
    for columns in (RESULT_COLUMNS, CLASS_COLUMNS)
)


def write_record(store: Store, record: ResultRecord) -> None:
    """Write a result, replacing an earlier attempt at the same definition."""
    store.put(result_key(record.benchmark, record.encoder, record.definition), record.to_bytes())


def write_table(store: Store, records: Iterable[ResultRecord]) -> None:
    """Write `results.parquet` from these records, one row a metric, sorted; failed probes have no row.

    With several seeds (few-shot: draws) each has its rows, and beside them, without a seed, stand the means under the
    metrics' own names and the standard deviations under `<metric>_spread`. Equal records give equal bytes.
    """
    rows = [
        _common(record) | {"metric": metric, "value": value, "seed": seed}
        for record in records
        if record.status == "done"
        for metric, value, seed in _values(record)
    ]
    # Means come first.
    rows.sort(
        key=lambda row: [
            *(str(row[c]) for c in ("benchmark", "encoder", "probe", "metric")),
            -1 if row["seed"] is None else row["seed"],
        ]
    )
    _put(store, TABLE, rows, _SCHEMA)


def write_classes(store: Store, records: Iterable[ResultRecord]) -> None:
    """Write `classes.parquet`: accuracy class by class (the test set's numbers and names), means over the seeds."""
    rows = [
        _common(record) | {"class": number, "name": name, "samples": samples, "accuracy": accuracy}
        for record in sorted(records, key=lambda r: (r.benchmark, r.encoder, r.definition.probe))
        if record.status == "done" and record.classes is not None
        for number, name, samples, accuracy in zip(
            record.classes.classes,
            record.classes.names or map(str, record.classes.classes),
            record.classes.samples,
            record.classes.accuracy,
            strict=True,
        )
    ]
    _put(store, CLASS_TABLE, rows, _CLASS_SCHEMA)


def _values(record: ResultRecord) -> Iterator[tuple[str, float, int | None]]:
    """(metric, value, seed) of every row; without a seed: over all of them."""
    if not record.per_seed:
        yield from ((metric, value, record.definition.seed) for metric, value in record.metrics.items())
        return
    yield from ((metric, value, None) for metric, value in record.metrics.items())
    yield from ((f"{metric}_spread", value, None) for metric, value in record.spread.items())
    for seed, metrics in record.per_seed.items():
        yield from ((metric, value, int(seed)) for metric, value in metrics.items())


def _common(record: ResultRecord) -> dict[str, Any]:
    return {
        "benchmark": record.benchmark,
        "encoder": record.encoder,
        "probe": record.definition.probe,
        "encoder_digest": record.definition.encoder,
        "dataset_digest": dataset_digest(record.definition),
        "protocol": record.definition.protocol,
    }


def _put(store: Store, key: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write a table unless an equal one is there."""
    data = sealed_table(pa.Table.from_pylist(rows, schema=schema))
    if get_or_none(store, key) != data:
        store.put(key, data)


_SAME_DATA = "Train and test are the same data: this is not a test score."


@dataclass(frozen=True)
class Job:
    """One probe of one encoder on one benchmark."""

    benchmark: str
    encoder: str
    role: Role
    definition: ResultDefinition
    load: Load
    note: str = ""
    """The benchmark's note; shown with its name."""
    shared: Callable[[], tuple[str, ...]] = tuple
    """Says which test images were trained on; outside the definition."""
    kept: bool = False
    """Whether the fitted probe is kept."""

    @property
    def title(self) -> str:
        """For people."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.encoder} on {self.benchmark}{note}, {self.definition.probe}"


def evaluate(
    workdir: Path,
    folder: Path,
    jobs: Sequence[Job],
    config: EvaluateConfig,
    reporter: Reporter,
    stop: Stop,
    device: str = "cpu",
) -> list[ResultRecord]:
    """Run every probe whose result is missing, failed or not of this definition; return the records in job order.

    `folder` is the evaluation's (`evaluations/<name>-<8>`). A probe that cannot be run leaves a record with status
    `failed` and the reason, and the others go on; `failures` makes an error of them. After a stop, what was not reached
    has no record.

    Raises:
        UserError: there is nothing to evaluate.
        StageError: a result could not be written.
    """
    if not jobs:
        raise UserError(
            "Nothing to evaluate: the configuration has no benchmark.",
            "Name a labelled dataset pair: evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
        )
    store = LocalStore(folder)
    store.sweep()
    records = _finished(workdir, store, jobs)
    if records:
        reporter.say(f"evaluate: {len(records)} of {len(jobs)} probes are fresh: skipped.")
    todo = _together([place for place in range(len(jobs)) if place not in records], jobs)
    setting = Setting(config, device, folder / RUNS, stop)
    said: set[tuple[str, str]] = set()
    if todo:
        with reporter.task("evaluate", total=len(jobs), unit="probes", done=len(records)) as task:
            for place in todo:
                if stop.requested:
                    break
                task.note(jobs[place].title)
                record = _run(jobs[place], setting, store)
                if record is None:
                    break
                records[place] = record
                write_record(store, record)
                if record.message and (record.benchmark, record.message) not in said:
                    said.add((record.benchmark, record.message))
                    reporter.say(f"{jobs[place].title}: {record.message}")
                task.advance()
            task.note("")
    in_order = [records[place] for place in sorted(records)]
    write_table(store, in_order)
    write_classes(store, in_order)
    point(workdir / FOLDER, folder.name.rpartition("-")[0], folder.name)
    return in_order


def failures(records: Sequence[ResultRecord]) -> StageError | None:
    """One error for all failed probes, or None; finished results are kept either way."""
    failed = [r for r in records if r.status == "failed"]
    if not failed:
        return None
    first = failed[0]
    return StageError(
        f"{len(failed)} of {len(records)} probes failed; the first, {first.encoder} on {first.benchmark}: {first.message}",
        "The other results are kept. Mend this and run again: unic-pipe evaluate",
    )


def _finished(workdir: Path, store: LocalStore, jobs: Sequence[Job]) -> dict[int, ResultRecord]:
    """Records in force by place in `jobs`; equal results of other evaluations or other names are taken over."""
    found: dict[int, ResultRecord] = {}
    for place, job in enumerate(jobs):
        record = current_record(store.root, job.benchmark, job.encoder, job.definition, job.kept)
        if record is not None and record.status == "done" and record.role == job.role:
            found[place] = record
    missing = [place for place in range(len(jobs)) if place not in found and not jobs[place].kept]
    known = equal_results(workdir, (digest_of(jobs[place].definition) for place in missing))
    for place in missing:
        job = jobs[place]
        equal = known.get(digest_of(job.definition))
        if equal is not None:
            names = {"benchmark": job.benchmark, "encoder": job.encoder, "role": job.role}
            found[place] = equal.model_copy(update=names)
            write_record(store, found[place])
    return found


def _run(job: Job, setting: Setting, store: Store) -> ResultRecord | None:
    """Run one probe, and keep it if that is asked; what the data or the machine refuse becomes a failed record, a stop
    gives none."""
    made, outcome = job.definition, None
    try:
        loaded = job.load(setting)
        if loaded is None:
            return None
        task, setting = loaded
        outcome = code_of(made.probe)(task, setting)
        if outcome is None:
            return None
        same = (_SAME_DATA,) if made.benchmark_train == made.benchmark_test else ()
        message = " ".join((*same, *job.shared(), *outcome.remarks, *task.remarks))
    except UnicPipeError as error:
        message = str(error).replace("\n", " ")
    except (MemoryError, torch.OutOfMemoryError):
        message = f"Out of memory on {setting.device}. Free some, or use another device: --device cpu"
    record = _record(job, outcome, message)
    if outcome is None or outcome.classifier is None or not job.kept:
        return record
    raw = array_to_bytes(outcome.classifier())
    store.put(probe_key(job.benchmark, job.encoder, made), raw)
    return record.model_copy(update={"classifier": sha256(raw)})


def _record(job: Job, outcome: Outcome | None, message: str) -> ResultRecord:
    """The record of a result, or of a failure without an outcome."""
    record = ResultRecord(
        benchmark=job.benchmark,
        encoder=job.encoder,
        role=job.role,
        definition=job.definition,
        digest=digest_of(job.definition),
        status="failed",
        metrics={},
        chosen={},
        message=message,
    )
    if outcome is None:
        return record
    found = {
        "status": "done",
        "metrics": outcome.metrics,
        "spread": outcome.spread,
        "per_seed": {str(s): m for s, m in outcome.per_seed.items()} if outcome.spread else {},
        "chosen": outcome.chosen,
        "classes": outcome.classes,
        "mistakes": outcome.mistakes,
    }
    return record.model_copy(update=found)


def _together(places: Sequence[int], jobs: Sequence[Job]) -> list[int]:
    """Jobs in their order, but those with equal training features one after the other: they are read and fitted once."""
    fitted_on = [(j.encoder, j.definition.features_train, j.definition.benchmark_train) for j in jobs]
    first: dict[tuple[str, ...], int] = {}
    for place in places:
        first.setdefault(fitted_on[place], place)
    return sorted(places, key=lambda place: (first[fitted_on[place]], place))
