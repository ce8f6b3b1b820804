"""The evaluate stage: every result that is not fresh, one after the other, each durable before the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.results import FOLDER, RUNS, current_record, equal_results
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError
from unic_pipe.schemas.evaluations import ResultDefinition, ResultRecord, Role
from unic_pipe.stages.evaluate.outcome import Outcome, Setting, code_of
from unic_pipe.stages.evaluate.results import write_classes, write_record, write_table
from unic_pipe.stages.evaluate.tasks import Load

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
                record = _run(jobs[place], setting)
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
        record = current_record(store.root, job.benchmark, job.encoder, job.definition)
        if record is not None and record.status == "done" and record.role == job.role:
            found[place] = record
    missing = [place for place in range(len(jobs)) if place not in found]
    known = equal_results(workdir, (digest_of(jobs[place].definition) for place in missing))
    for place in missing:
        job = jobs[place]
        equal = known.get(digest_of(job.definition))
        if equal is not None:
            names = {"benchmark": job.benchmark, "encoder": job.encoder, "role": job.role}
            found[place] = equal.model_copy(update=names)
            write_record(store, found[place])
    return found


def _run(job: Job, setting: Setting) -> ResultRecord | None:
    """Run one probe; what the data or the machine refuse becomes a failed record, a stop gives none."""
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
    return _record(job, outcome, message)


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
    }
    return record.model_copy(update=found)


def _together(places: Sequence[int], jobs: Sequence[Job]) -> list[int]:
    """Jobs in their order, but those with equal training features one after the other: they are read and fitted once."""
    fitted_on = [(j.encoder, j.definition.features_train, j.definition.benchmark_train) for j in jobs]
    first: dict[tuple[str, ...], int] = {}
    for place in places:
        first.setdefault(fitted_on[place], place)
    return sorted(places, key=lambda place: (first[fitted_on[place]], place))
