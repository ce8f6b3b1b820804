"""Students from start to finish: freeze their inputs, train or resume, export, and point their names to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pipeline.encoders import ResolvedEncoder, load_encoder
from pipeline.engine import pick_device
from pipeline.finished import FinishedStudent, checkpoint_step, finished_student
from pipeline.pointers import point
from pipeline.progress import Reporter
from pipeline.stopping import Stop
from pipeline.storage import LocalStore
from pipeline.students import student_folder
from pipeline.threads import torch_threads, usable_cores
from schemas.base import digest_of
from schemas.config import DistillConfig
from schemas.students import StudentDefinition
from stages.distill.checkpoints import Checkpoints
from stages.distill.feed import Feed, Rows, Source
from stages.distill.finish import finish
from stages.distill.frozen import Frozen, freeze
from stages.distill.limits import check_memory, memory_words
from stages.distill.live import LiveTeacher
from stages.distill.loader import Share
from stages.distill.loop import train
from stages.distill.model import Distiller
from stages.distill.parent import start_from
from stages.distill.rows import rows_digest, trained_tokens, usable_rows
from stages.distill.training import Diverged, Training
from stages.distill.unchanged import check_views
from stages.distill.world import World

MAX_READERS = 8
"""Threads that decode images and blocks."""


@dataclass(frozen=True)
class StudentJob:
    """A student to train, and what it is made from."""

    name: str
    """Its folder is `students/<name>-<8 digits>`, and `students/<name>` will point to it."""
    definition: StudentDefinition
    """From `pipeline.students.student_definition`."""
    training: Source
    """The training samples, and a cache for every teacher of the definition."""
    validation: Source | None = None
    """Samples and centre-crop features for the validation loss."""
    parent: FinishedStudent | None = None
    """The student whose weights it starts from."""
    teachers: Mapping[str, ResolvedEncoder] | None = None
    """Every teacher, when they run in the loop."""


@dataclass(frozen=True)
class DistillOutcome:
    """How it ended: `finished` now, `already` finished before, `stopped` on request, or `failed` with an `error`."""

    folder: Path
    digest: str
    state: Literal["finished", "already", "stopped", "failed"]
    step: int
    steps: int
    error: Diverged | None = None


def distill(
    jobs: Sequence[StudentJob],
    *,
    workdir: Path,
    settings: DistillConfig,
    device: str,
    reporter: Reporter,
    stop: Stop,
    world: World | None = None,
) -> list[DistillOutcome]:
    """Train and export students, each from its last checkpoint if there is one. Finished ones are never touched.

    Students that agree in rows, views, batch size and sample order train together: data are read and decoded once, and
    every student gets the bits that it would get alone.

    Args:
        jobs: the students.
        workdir: the working folder.
        settings: what does not change the weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        reporter: shows progress.
        stop: polled between steps; a stop writes checkpoints first.
        world: processes that do this together, each its share of every batch; the first one writes.

    Raises:
        UserError: a configuration that cannot be trained.
        StageError: incomplete or damaged features, short memory. A student that diverged is `failed` instead.
    """
    world = world or World()
    with world.in_turn():
        outcomes, todo = _look(jobs, workdir, reporter)
        if world.first:
            check_views([(job.training, job.definition.views) for job, _ in todo], reporter)
        begun = [_begin(job, folder, settings, reporter, world) for job, folder in todo]
    for group in _groups(begun):
        if world.stopping(stop):
            steps = {b.job.name: checkpoint_step(b.store.root) or 0 for b in group}
            outcomes |= {b.job.name: b.outcome("stopped", steps[b.job.name]) for b in group}
        else:
            on = torch.device(pick_device(world.device(device)))
            outcomes |= _train(group, on, settings, reporter, stop, world)
    return [outcomes[job.name] for job in jobs]


def _look(
    jobs: Sequence[StudentJob], workdir: Path, reporter: Reporter
) -> tuple[dict[str, DistillOutcome], list[tuple[StudentJob, Path]]]:
    """Outcomes of students that are finished, and what is to be trained where."""
    outcomes: dict[str, DistillOutcome] = {}
    todo: list[tuple[StudentJob, Path]] = []
    for job in jobs:
        folder = student_folder(workdir, job.name, job.definition)
        done = finished_student(job.name, folder)
        if done is None:
            todo.append((job, folder))
            continue
        point(folder.parent, job.name, folder.name)
        reporter.say(f"Student {job.name} is finished ({folder.relative_to(workdir)}); nothing to do.")
        outcomes[job.name] = DistillOutcome(
            folder, done.manifest.digest, "already", done.export.step, done.manifest.steps
        )
    return outcomes, todo


@dataclass(frozen=True)
class _Begun:
    """A job with what its training rests on."""

    job: StudentJob
    store: LocalStore
    frozen: Frozen
    training: Rows
    validation: Rows | None
    checkpoints: Checkpoints

    @property
    def key(self) -> tuple[object, ...]:
        """What students that train together agree in."""
        d, feature = self.job.definition, next(iter(self.job.training.caches.values())).definition
        config = d.config
        validation = rows_digest(self.validation.rows_N) if self.validation is not None else None
        data = (
            d.dataset,
            d.blocks,
            d.views,
            d.patch_views,
            d.patch_every,
            d.live,
            digest_of(feature.recipe),
            feature.view_seed,
        )
        order = config.seed, config.optimizer.batch, config.streams, config.window_blocks, config.threads
        return *data, *order, self.frozen.manifest.rows_digest, validation

    def outcome(
        self, state: Literal["finished", "stopped", "failed"], step: int, error: Diverged | None = None
    ) -> DistillOutcome:
        manifest = self.frozen.manifest
        return DistillOutcome(self.store.root, manifest.digest, state, step, manifest.steps, error)


def _begin(job: StudentJob, folder: Path, settings: DistillConfig, reporter: Reporter, world: World) -> _Begun:
    store, definition = LocalStore(folder), job.definition
    if world.first:
        store.sweep()
    tokens = trained_tokens(definition.config)
    dataset, caches = job.training.dataset, job.training.caches
    rows_N = usable_rows(dataset, caches, definition.views, tokens, definition.blocks, definition.patch_views)
    frozen = freeze(store, job.name, definition, caches, rows_N)
    validation = None
    if job.validation is not None:
        val = job.validation
        usable_N = usable_rows(val.dataset, val.caches, 1, tokens, val.dataset.blocks)
        validation = Rows(val, usable_N) if len(usable_N) else None
    manifest = frozen.manifest
    checkpoints = Checkpoints(store, manifest.digest, manifest.rows_digest, settings.keep_checkpoints, reporter.say)
    return _Begun(job, store, frozen, Rows(job.training, rows_N), validation, checkpoints)


def _groups(begun: Sequence[_Begun]) -> list[list[_Begun]]:
    groups: dict[tuple[object, ...], list[_Begun]] = {}
    for one in begun:
        groups.setdefault(one.key, []).append(one)
    return list(groups.values())


def _train(
    group: Sequence[_Begun],
    device: torch.device,
    settings: DistillConfig,
    reporter: Reporter,
    stop: Stop,
    world: World,
) -> dict[str, DistillOutcome]:
    """Train students together; how each ended."""
    names = [b.job.name for b in group]
    if len(group) > 1:
        dataset = group[0].job.training.dataset.manifest.name
        reporter.say(f"Training {', '.join(names)} in one pass: {dataset} is read and decoded once for all of them.")
    with ExitStack() as stack:
        stack.enter_context(memory_words(names))
        stack.enter_context(torch_threads(group[0].job.definition.config.threads, device))
        pool = stack.enter_context(ThreadPoolExecutor(readers(world)))
        students = [_build(b, device, settings, reporter, world) for b in group]
        feed = _feed(group, pool, device, world, settings.micro_batch)
        check_memory(students, feed, device, world.local_size)
        for student in students:
            student.begin()
            stack.callback(student.close)
        train(students, feed, settings, finish, reporter, stop, world)
    outcomes = {}
    for b, student in zip(group, students, strict=True):
        done: Literal["finished", "stopped", "failed"] = "finished" if student.step == student.steps else "stopped"
        outcomes[b.job.name] = b.outcome("failed" if student.error else done, student.step, student.error)
    return outcomes


def readers(world: World) -> int:
    """Threads of one process that decode images and blocks."""
    return min(max(1, usable_cores() // world.local_size), MAX_READERS)


def _build(begun: _Begun, device: torch.device, settings: DistillConfig, reporter: Reporter, world: World) -> Training:
    job, definition = begun.job, begun.job.definition
    prepare = None
    if job.parent is not None:
        names = tuple(teacher.name for teacher in definition.teachers)
        prepare = partial(start_from, job.parent, job.name, teachers=names, say=reporter.say)
    return Training(
        job.name,
        definition,
        Distiller(definition.config, definition.teachers, device, begun.frozen.statistics),
        len(begun.training.rows_N),
        checkpoints=begun.checkpoints,
        prepare=prepare,
        world=world,
        settings=settings,
    )


def _feed(
    group: Sequence[_Begun], pool: ThreadPoolExecutor, device: torch.device, world: World, micro: int | None
) -> Feed:
    """Sources with the caches of all students' teachers; in the loop, every teacher is loaded once."""
    first = group[0]
    teachers: dict[str, LiveTeacher] = {}
    for job in (b.job for b in group):
        for name, resolved in (job.teachers or {}).items():
            if name not in teachers:
                compute = job.training.caches[name].definition.compute
                teachers[name] = LiveTeacher(load_encoder(resolved, device=device), compute)
    validations = [b.validation for b in group if b.validation is not None]
    return Feed(
        training=_merged([b.training for b in group]),
        validation=_merged(validations) if validations else None,
        definition=first.job.definition,
        pool=pool,
        device=device,
        teachers=teachers,
        share=Share(world.rank, world.size, micro),
        threads=readers(world),
    )


def _merged(rows: Sequence[Rows]) -> Rows:
    caches = {name: cache for r in rows for name, cache in r.source.caches.items()}
    return Rows(Source(rows[0].source.dataset, caches), rows[0].rows_N)
