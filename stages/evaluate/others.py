"""Results that are no probes of `Features`: run one after the other, each durable before the next, like the probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.evaluations import current_record, equal_results
from pipeline.progress import Reporter
from pipeline.protocols import OtherPlan
from pipeline.stopping import Stop
from pipeline.storage import LocalStore
from schemas.base import digest_of
from schemas.config import Scalar
from schemas.errors import UnicPipeError
from schemas.evaluations import ResultRecord
from stages.evaluate.results import write_record

SAME_DATA = "Train and test are the same data: this is not a test score."


@dataclass(frozen=True)
class Measured:
    """What a result says: metrics, what was noted about it, and what its reader has to know."""

    metrics: dict[str, float]
    chosen: dict[str, Scalar]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class OtherJob:
    """One result, and the function that computes it on a device; after a stop it gives None."""

    plan: OtherPlan
    run: Callable[[str, Stop], Measured | None]


def run_others(
    workdir: Path, store: LocalStore, jobs: Sequence[OtherJob], reporter: Reporter, stop: Stop, device: str
) -> list[ResultRecord]:
    """Run every job whose result is missing, failed or not of this definition; records in job order.

    What the data or the machine refuse becomes a failed record, and the others go on. After a stop, what was not reached
    has no record.

    Raises:
        StageError: a result could not be written.
    """
    known = {place: record for place, job in enumerate(jobs) if (record := _fresh(workdir, store, job.plan))}
    if len(known) < len(jobs):
        with reporter.task("evaluate", total=len(jobs), unit="results", done=len(known)) as task:
            for place, job in enumerate(jobs):
                if place in known:
                    continue
                if stop.requested:
                    break
                title = f"{job.plan.encoder.name} on {job.plan.benchmark}, {job.plan.definition.probe}"
                task.note(title)
                record = _run(job, device, stop)
                if record is None:
                    break
                known[place] = record
                write_record(store, record)
                if record.message:
                    reporter.say(f"{title}: {record.message}")
                task.advance()
            task.note("")
    return [known[place] for place in sorted(known)]


def _fresh(workdir: Path, store: LocalStore, plan: OtherPlan) -> ResultRecord | None:
    """The record in force; an equal result of another evaluation or another name is taken over."""
    record = current_record(store.root, plan.benchmark, plan.encoder.name, plan.definition)
    if record is not None and record.status == "done" and record.role == plan.role:
        return record
    digest = digest_of(plan.definition)
    equal = equal_results(workdir, [digest]).get(digest)
    if equal is None:
        return None
    names = {"benchmark": plan.benchmark, "encoder": plan.encoder.name, "role": plan.role}
    record = equal.model_copy(update=names)
    write_record(store, record)
    return record


def _run(job: OtherJob, device: str, stop: Stop) -> ResultRecord | None:
    found: Measured | None = None
    try:
        found = job.run(device, stop)
        if found is None:
            return None
        same = job.plan.definition.benchmark_train == job.plan.definition.benchmark_test
        message = " ".join([*([SAME_DATA] if same else []), *found.remarks])
    except UnicPipeError as error:
        message = str(error).replace("\n", " ")
    except (MemoryError, torch.OutOfMemoryError):
        message = f"Out of memory on {device}. Free some, or use another device: --device cpu"
    plan = job.plan
    return ResultRecord(
        benchmark=plan.benchmark,
        encoder=plan.encoder.name,
        role=plan.role,
        definition=plan.definition,
        digest=digest_of(plan.definition),
        status="failed" if found is None else "done",
        metrics={} if found is None else found.metrics,
        chosen={} if found is None else found.chosen,
        message=message,
    )
