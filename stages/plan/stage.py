"""`plan`: what extract, distill and evaluate will take, from a short measurement on this machine, before anything runs."""

import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.calibrate import calibration_count
from unic_pipe.pipeline.extraction.preflight import existing_folder
from unic_pipe.pipeline.extraction.sizes import (
    Extent,
    Size,
    Work,
    calibration_work,
    codec_label,
    dataset_work,
    shared_size,
    token_size,
)
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.workspace.evaluation_plans import lacking
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import extraction_needs, only_evaluated, used_datasets
from unic_pipe.pipeline.workspace.unmeant import remarks
from unic_pipe.schemas.codecs import plain_codecs
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.features import CodecDefinition
from unic_pipe.schemas.plans import Measurement, PlanReport, PlanRow, StagePlan
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.schemas.status import Stage
from unic_pipe.stages.plan.advice import HOUR_S, Job, advise
from unic_pipe.stages.plan.kept import Kept
from unic_pipe.stages.plan.measure import SECONDS, measure
from unic_pipe.stages.plan.probes import probe_work
from unic_pipe.stages.plan.students import StepCost, student_rows

DISK_PROBE_BYTES = 32_000_000
CANDIDATES = (
    *(CodecDefinition(name=name) for name in plain_codecs()),
    *(CodecDefinition(name="klt", snr_db=snr_db) for snr_db in (20.0, 15.0, 10.0)),
)
"""Codecs to choose from, beside the configured one. Centre crops are never calibrated."""
FEW_ROWS = 64
"""Rows on which the features of a benchmark are measured."""
BUDGET_S = 3.0
"""Forward passes of all encoders together, but for a few images of each: the first answer is to come soon."""
PATIENCE_S = 2.0
"""An encoder that needs longer for them is measured on one benchmark alone."""


@dataclass(frozen=True)
class PlanOptions:
    """How to plan. `disk` in bytes and `deadline` in seconds ask for settings that fit."""

    device: str = "auto"
    throughput: float | None = None
    """Image-forwards per second, instead of the measured ones."""
    disk: float | None = None
    deadline: float | None = None
    anew: bool = False
    """Measure also what was measured before."""


@dataclass
class _Plan:
    rows: list[PlanRow] = field(default_factory=list)
    work: dict[Stage, float] = field(default_factory=dict)
    folders: int = 0
    probes: int = 0


def plan(inventory: Inventory, options: PlanOptions, step_cost: StepCost, reporter: Reporter) -> PlanReport:
    """Measure what has to be, and add up. Datasets must be indexed; what cannot be planned yet is a row with a note.

    Raises:
        UserError: there is no such device.
        StageError: samples cannot be read.
    """
    device, cores = pick_device(options.device), usable_cores()
    codecs = CANDIDATES if options.disk or options.deadline else ()
    for remark in remarks(inventory):
        reporter.say(remark)
    kept, result, total = Kept(inventory.folder, options.anew), _Plan(), Work()
    jobs = _jobs(inventory, device, codecs, kept, result, reporter)
    features = inventory.workspace.features
    disk_rate = _disk_rate(features) if any(job.forwards for job in jobs) else None
    for stage in ("extract", "evaluate"):
        work = _stage_work([j for j in jobs if j.stage == stage], disk_rate)
        forwards = sum(job.forwards for job in jobs if job.stage == stage)
        seconds = forwards / options.throughput if options.throughput else work.seconds(cores)
        result.work[stage] = seconds
        result.rows += _feature_rows([j for j in jobs if j.stage == stage], seconds)
        result.folders += sum(_left(job).folders for job in jobs if job.stage == stage)
        total += work if stage == "extract" else Work()
    rows, result.work["distill"] = student_rows(inventory, device, step_cost, jobs, cores, kept, reporter)
    result.rows += rows
    disk = existing_folder(features) if isinstance(features, LocalStore) else inventory.folder
    report = _report(result, total, disk, features.remote, device, cores, kept.since)
    extracted = [j for j in jobs if j.stage == "extract"]
    report = report.model_copy(update={"bytes_spread": _bytes_spread(extracted)})
    if not options.throughput:
        report = report.model_copy(update={"hours_spread": _spread(extracted)})
    if report.unknown:
        return report.model_copy(update={"fits": False})
    if options.disk or options.deadline:
        advice = advise(inventory.config, jobs, report, options.disk, options.deadline)
        report = report.model_copy(update={"advice": advice})
    return report


def _jobs(
    inventory: Inventory,
    device: str,
    codecs: Sequence[CodecDefinition],
    kept: Kept,
    result: _Plan,
    reporter: Reporter,
) -> list[Job]:
    """Every feature folder of extract and evaluate, measured; what cannot be planned goes into `result`, with the number
    of probes."""
    only_scored = set(only_evaluated(inventory))  # a benchmark that is not here is skipped
    notes = result.rows
    notes += [
        PlanRow(
            name=f"samples/{n}",
            stage="evaluate" if n in only_scored else "index",
            note=f"not indexed yet: unic-pipe index {n}",
        )
        for n in used_datasets(inventory)
        if inventory.dataset(n).dataset is None
    ]
    wanted: list[tuple[Stage, FeatureNeed, ResolvedEncoder]] = []
    for teacher in inventory.config.teachers:
        try:
            encoder = inventory.teacher(teacher)
            wanted += [("extract", need, encoder) for need in extraction_needs(inventory, (teacher,))]
        except UnicPipeError as error:
            notes.append(PlanRow(name=f"features/{teacher}", stage="extract", note=error.message))
    try:
        needs, result.probes = probe_work(inventory)
        wanted += [("evaluate", need, encoder) for need, encoder in needs]
        left_out = lacking(inventory).items()
        notes += [
            PlanRow(name=f"benchmark {n}", stage="evaluate", note=f"will be skipped: {why}") for n, why in left_out
        ]
    except UnicPipeError as error:
        notes.append(PlanRow(name="evaluations/main", stage="evaluate", note=error.message))
    jobs: list[Job] = []
    seen: dict[str, Measurement] = {}
    with reporter.task("measure", total=len(wanted), unit="encoders") as task:
        for stage, need, encoder in wanted:
            task.note(need.name)
            jobs.append(_job(inventory, kept, stage, need, encoder, device, codecs, seen, BUDGET_S / len(wanted)))
            task.advance()
    return jobs


def _job(
    inventory: Inventory,
    kept: Kept,
    stage: Stage,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    codecs: Sequence[CodecDefinition],
    seen: dict[str, Measurement],
    seconds: float,
) -> Job:
    dataset = inventory.dataset(need.dataset).dataset
    assert dataset is not None, "its needs come from its manifest"
    blocks = inventory.block_limit(dataset) if stage == "extract" else dataset.blocks
    centre = need.definition.recipe == CENTER
    definitions = [need.definition.codec]
    definitions += [c for c in codecs if c not in definitions and not (centre and c.calibrated)]
    same = f"{encoder.digest} {sorted(need.views)}"
    # The probes' cls tokens are small: of a slow encoder, one dataset has to do for all.
    measured = seen.get(same) if stage == "evaluate" else None
    if measured is None or measured.forward_seconds * FEW_ROWS < PATIENCE_S:
        limit = FEW_ROWS if stage == "evaluate" else dataset.block_rows
        measured = measure(kept, dataset, need, encoder, device, definitions, limit, min(SECONDS, seconds))
    if stage == "evaluate":
        seen[same] = measured
    counts = [dataset.block_range(block)[1] for block in range(blocks)]
    missing, forwards = inventory.missing_units(need, blocks)
    return Job(
        need=need,
        measured=measured,
        extent=Extent(sum(counts), blocks),
        missing=missing,
        forwards=round(forwards / max(1, blocks) * sum(counts)),
        stage=stage,
    )


def _stage_work(jobs: Sequence[Job], disk_rate: float | None) -> Work:
    """Datasets are extracted one after the other, all encoders of one together."""
    total = Work()
    for dataset in dict.fromkeys(job.need.dataset for job in jobs):
        mine = [job for job in jobs if job.need.dataset == dataset]
        forwards = {job.need.digest: job.forwards for job in mine}
        total += dataset_work([(j.need, j.measured) for j in mine], forwards, mine[0].extent.rows, disk_rate)
        for job in mine:
            if job.need.definition.codec.calibrated and job.untouched:
                rows = calibration_count(job.extent.rows, job.need.definition.codec)
                total += calibration_work(job.need, job.measured, rows)
    return total


def _size(job: Job, token: TokenType) -> Size:
    label = codec_label(job.need.definition.codec)
    first = next(t for t, v in job.need.views.items() if v)
    views = job.need.views[token]
    size = token_size(job.measured, token, label, views, job.extent)
    return size + shared_size(job.measured, max(job.need.views.values())) if token == first else size


def _left(job: Job) -> Size:
    """What is still to be written of a feature folder."""
    total = Size()
    for token, views in job.need.views.items():
        if views:
            size, left = _size(job, token), job.left(token)
            total += Size(size.bytes * left, round(size.files * left), round(size.folders * left))
    return total


def _feature_rows(jobs: Sequence[Job], seconds: float) -> list[PlanRow]:
    forwards = sum(job.forwards for job in jobs)
    rows = []
    for job in jobs:
        encoder, label = job.need.definition.encoder, codec_label(job.need.definition.codec)
        hours: float | None = seconds / HOUR_S * job.forwards / forwards if forwards else 0.0
        for token, views in job.need.views.items():
            if not views:
                continue
            shape = encoder.shape(token)
            size, left = _size(job, token), job.left(token)
            rows.append(
                PlanRow(
                    name=job.need.name,
                    stage=job.stage,
                    token=token,
                    images=job.extent.rows,
                    views=views,
                    tokens=math.prod(shape[:-1]),
                    codec=label,
                    bits_per_value=8 * job.measured.codecs[token][label].row_bytes / math.prod(shape),
                    bytes=round(size.bytes),
                    bytes_left=round(size.bytes * left),
                    files=round(size.files * left),
                    hours=hours,
                )
            )
            hours = None
    return rows


def _spread(jobs: Sequence[Job]) -> float | None:
    """Standard error of the time of all forward passes, relative; None where no encoder's is known."""
    costs = [(job.forwards * job.measured.forward_seconds, job.measured.forward_spread) for job in jobs]
    known = [(seconds, spread) for seconds, spread in costs if seconds and spread is not None]
    total = sum(seconds for seconds, _ in known)
    return math.hypot(*(seconds * spread for seconds, spread in known)) / total if total else None


def _bytes_spread(jobs: Sequence[Job]) -> float | None:
    """How far the bytes of all features may be off, relative; None where no codec is fitted."""
    off, total = list[float](), 0.0
    for job in jobs:
        for token, views in job.need.views.items():
            codec = job.measured.codecs[token][codec_label(job.need.definition.codec)] if views else None
            if codec is not None:
                total += (size := _size(job, token).bytes)
                values = views * job.extent.rows * codec.row_bytes
                off += [min(size, values) * codec.row_spread] if codec.row_spread is not None else []
    return math.hypot(*off) / total if off and total else None


def _report(
    result: _Plan, work: Work, disk: Path, remote: bool, device: str, cores: int, since: float | None
) -> PlanReport:
    """The sums. `disk`: a folder on the disk that is asked for room; `remote`: features do not go there; `since`: when the
    oldest measurement of before was made."""
    order: tuple[Stage, ...] = ("index", "extract", "distill", "evaluate")
    rows = sorted(result.rows, key=lambda row: order.index(row.stage))
    stages: dict[Stage, StagePlan] = {}
    for stage in order[1:]:
        mine = [row for row in rows if row.stage == stage]
        hours = result.work.get(stage, 0.0) / HOUR_S
        stages[stage] = StagePlan(
            bytes=sum(r.bytes_left for r in mine),
            files=sum(r.files for r in mine),
            hours=hours if mine else 0.0,
            probes=result.probes if stage == "evaluate" else 0,
        )
    total = sum(s.bytes for s in stages.values())
    files = sum(s.files for s in stages.values())
    inodes = files + result.folders
    local = stages["distill"] if remote else StagePlan(bytes=total, files=inodes, hours=0.0)
    free = shutil.disk_usage(disk).free
    extracting = result.work.get("extract", 0.0)
    return PlanReport(
        bytes=total,
        files=files,
        inodes=inodes,
        hours=sum(s.hours or 0.0 for s in stages.values()),
        free_bytes=free,
        fits=local.bytes <= free and local.files <= _free_inodes(disk),
        device=device,
        cores=cores,
        mb_per_s=stages["extract"].bytes / 1e6 / extracting if extracting else None,
        bottleneck=work.bottleneck(cores),
        stages=stages,
        rows=tuple(rows),
        measured=None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
    )


def _free_inodes(folder: Path) -> float:
    """Files that the file system still has room for; some do not count them."""
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else float("inf")


def _disk_rate(store: Store) -> float:
    """Bytes per second of durable writes; to an object store by one object that is removed again."""
    data = os.urandom(DISK_PROBE_BYTES)
    if not isinstance(store, LocalStore):
        key = f".plan-{uuid.uuid4().hex}"
        started = time.perf_counter()
        store.put(key, data)
        seconds = time.perf_counter() - started
        store.delete(key)
        return len(data) / seconds
    with tempfile.NamedTemporaryFile(dir=existing_folder(store), prefix=".unic-pipe-plan-") as handle:
        started = time.perf_counter()
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
        return len(data) / (time.perf_counter() - started)
