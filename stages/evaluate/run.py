"""The evaluate stage: every probe that is not fresh, one after the other, each result durable before the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipeline.evaluations import (
    FOLDER,
    RUNS,
    current_record,
    equal_results,
    evaluation_digest,
    evaluation_folder,
)
from pipeline.pointers import point
from pipeline.progress import Reporter
from pipeline.stopping import Stop
from pipeline.storage import LocalStore
from schemas.base import digest_of, short
from schemas.config import Config, EvaluateConfig
from schemas.errors import StageError, UnicPipeError, UserError
from schemas.evaluations import ClassAccuracy, ResultDefinition, ResultRecord
from stages.evaluate.checks import Task, check_task
from stages.evaluate.features import Features
from stages.evaluate.others import SAME_DATA, OtherJob, run_others
from stages.evaluate.probes import Fits, Outcome, Setting, probe_of
from stages.evaluate.results import write_classes, write_record, write_table

Role = Literal["teacher", "student", "baseline", "encoder"]


@dataclass(frozen=True)
class ProbeJob:
    """One probe of one encoder on one benchmark. `train` and `test` load their features when they are needed."""

    benchmark: str
    encoder: str
    role: Role
    definition: ResultDefinition
    train: Callable[[], Features]
    """For instance `partial(read_features, cache, dataset)`."""
    test: Callable[[], Features]
    note: str = ""
    """The benchmark's note; shown with its name."""
    asked: tuple[int, ...] | None = None
    """For each training class the test class that it counts as, in a test with another benchmark's probe."""

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """What its probe is fitted on: jobs that agree in it share one fit."""
        return self.encoder, self.definition.features_train, self.definition.benchmark_train


def evaluate(
    config: Config,
    workdir: Path,
    name: str,
    jobs: Sequence[ProbeJob],
    reporter: Reporter,
    stop: Stop,
    device: str = "cpu",
    others: Sequence[OtherJob] = (),
) -> list[ResultRecord]:
    """Run every probe whose result is missing, failed or not of this definition; return the records in job order.

    `jobs` holds all benchmarks of the configuration: together with the protocol and the settings they name the folder
    `evaluations/<name>-<8>`. A probe that cannot be run leaves a record with status `failed` and the reason, and the
    others go on; `failures` makes an error of them. After a stop, what was not reached has no record. `others` are results
    that are no probes of `Features`; they come after the probes, in the same folder and table.

    Raises:
        UserError: there is nothing to evaluate.
        StageError: a result could not be written.
    """
    if not jobs and not others:
        raise UserError(
            "Nothing to evaluate: the configuration has no benchmark.",
            "Name a labelled dataset pair: evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
        )
    benchmarks = {j.benchmark: (j.definition.benchmark_train, j.definition.benchmark_test) for j in jobs}
    folder = evaluation_folder(workdir, name, evaluation_digest(config.evaluate, benchmarks))
    store = LocalStore(folder)
    store.sweep()
    records = _finished(workdir, store, jobs)
    if records:
        reporter.say(f"evaluate: {len(records)} of {len(jobs)} probes are fresh: skipped.")
    todo = _together([place for place in range(len(jobs)) if place not in records], jobs)
    if todo:
        with reporter.task("evaluate", total=len(jobs), unit="probes", done=len(records)) as task:
            loader = _Loader()
            for place in todo:
                if stop.requested:
                    break
                task.note(_title(jobs[place]))
                records[place] = _run(jobs[place], loader, config.evaluate, device, folder / RUNS)
                write_record(store, records[place])
                if records[place].message:
                    reporter.say(f"{_title(jobs[place])}: {records[place].message}")
                task.advance()
            task.note("")
    in_order = [records[place] for place in sorted(records)]
    in_order += run_others(workdir, store, others, reporter, stop, device)
    write_table(store, in_order)
    write_classes(store, in_order)
    point(workdir / FOLDER, name, folder.name)
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


def _finished(workdir: Path, store: LocalStore, jobs: Sequence[ProbeJob]) -> dict[int, ResultRecord]:
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


def _run(job: ProbeJob, loader: _Loader, config: EvaluateConfig, device: str, runs: Path) -> ResultRecord:
    """Run one probe; what the data or the machine refuse becomes a failed record."""
    outcome: Outcome | None = None
    try:
        task = loader.load(job)
        setting = Setting(config, device, runs, "-".join(map(short, job.fitted_on[1:])))
        outcome = probe_of(job.definition.probe)(task, setting, loader.fits)
        same = (SAME_DATA,) if job.definition.benchmark_train == job.definition.benchmark_test else ()
        message = " ".join((*same, *outcome.remarks, *task.remarks))
    except UnicPipeError as error:
        message = str(error).replace("\n", " ")
    except (MemoryError, torch.OutOfMemoryError):
        message = f"Out of memory on {device}. Free some, or use another device: --device cpu"
    return ResultRecord(
        benchmark=job.benchmark,
        encoder=job.encoder,
        role=job.role,
        definition=job.definition,
        digest=digest_of(job.definition),
        status="failed" if outcome is None else "done",
        metrics={} if outcome is None else outcome.metrics,
        spread={} if outcome is None else outcome.spread,
        per_seed={} if outcome is None or not outcome.spread else {str(s): m for s, m in outcome.per_seed.items()},
        chosen={} if outcome is None else outcome.chosen,
        classes=None if outcome is None or outcome.classes is None else ClassAccuracy(**vars(outcome.classes)),
        message=message,
    )


def _title(job: ProbeJob) -> str:
    note = f" ({job.note})" if job.note else ""
    return f"{job.encoder} on {job.benchmark}{note}, {job.definition.probe}"


def _together(places: Sequence[int], jobs: Sequence[ProbeJob]) -> list[int]:
    """Jobs in their order, but those with equal training features one after the other: they are read and fitted once."""
    first: dict[tuple[str, ...], int] = {}
    for place in places:
        first.setdefault(jobs[place].fitted_on, place)
    return sorted(places, key=lambda place: (first[jobs[place].fitted_on], place))


class _Loader:
    """Keeps the last training features, what was fitted on them, and the last task, so that probes share them."""

    def __init__(self) -> None:
        self.fits: Fits = {}
        """Of the training set that was loaded last."""
        self._train: tuple[tuple[str, ...], Features] | None = None
        self._task: tuple[tuple[object, ...], Task] | None = None

    def load(self, job: ProbeJob) -> Task:
        key = (job.benchmark, *job.fitted_on, job.definition.features_test, job.definition.benchmark_test, job.asked)
        if self._task is not None and self._task[0] == key:
            return self._task[1]
        self._task = None  # lets go of the last one's memory first
        if self._train is None or self._train[0] != job.fitted_on:
            self._train, self.fits = None, {}
            self._train = job.fitted_on, job.train()
        self._task = key, check_task(self._train[1], job.test(), job.asked)
        return self._task[1]
