"""Students from start to finish: freeze their inputs, train or resume those that go together, export."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from unic_pipe.pipeline.encoders import ResolvedEncoder, load_encoder
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.loggers import send
from unic_pipe.pipeline.process.memory import freed_memory_kept
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.samples.mixtures import dealt
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.documents import finished_student, last_checkpoint, step_threads
from unic_pipe.pipeline.workspace.students import begun_now, student_folder
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.stages.distill.checkpoints import Checkpoints
from unic_pipe.stages.distill.checks import check_memory, check_views, memory_words
from unic_pipe.stages.distill.data.batches import Share
from unic_pipe.stages.distill.data.classes import of_known_classes
from unic_pipe.stages.distill.data.feed import Feed
from unic_pipe.stages.distill.data.frozen import Frozen, freeze
from unic_pipe.stages.distill.data.live import LiveTeacher
from unic_pipe.stages.distill.data.rows import Rows, rows_digest, trained_tokens, training_rows, usable_rows
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.loop import train
from unic_pipe.stages.distill.measure.compiling import compiling_pays
from unic_pipe.stages.distill.metrics import read_metrics, student_run
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.parent import start_from
from unic_pipe.stages.distill.model.warm import start_from_weights
from unic_pipe.stages.distill.parallel.copies import at_once
from unic_pipe.stages.distill.parallel.world import Context, World
from unic_pipe.stages.distill.training import Diverged, Training

MAX_READERS = 8
"""Threads that decode images and blocks."""


def distill(
    jobs: Sequence[StudentJob], context: Context, *, workdir: Path, settings: DistillConfig, device: str
) -> dict[str, Diverged]:
    """Train and export students, each from its last checkpoint if there is one. Finished ones are never touched.

    Students that agree in rows, views, batch size and sample order train together: data are read and decoded once, and
    every student gets the bits that it would get alone.

    Args:
        jobs: the students.
        context: how to talk, when to stop, and with whom.
        workdir: the working folder.
        settings: what does not change the weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Returns:
        By student, why it diverged; the others are finished, or were stopped on request.

    Raises:
        UserError: a configuration that cannot be trained.
        StageError: incomplete or damaged features, short memory, or another process is training one of the students.
    """
    world, reporter = context.world, context.reporter
    with ExitStack() as stack:
        for job in jobs if world.first else ():
            lock = workdir / "runs" / f"{student_folder(workdir, job.name, job.definition).name}.lock"
            stack.enter_context(exclusive(lock, f"Distillation of {job.name}"))
        with world.in_turn():
            todo = [job for job in jobs if not _is_finished(job, workdir, context)]
            if world.first:
                check_views([(source, job.definition.views) for job in todo for source in job.training], reporter)
            begun = [_begin(job, workdir, settings, device, context) for job in todo]
        groups: dict[tuple[object, ...], list[_Begun]] = {}
        for one in begun:
            groups.setdefault(one.key, []).append(one)
        failed: dict[str, Diverged] = {}
        for group in groups.values():
            if not world.stopping(context.stop):
                on = torch.device(pick_device(world.device(device)))
                students = _train(group, on, settings, context)
                failed |= {student.name: student.error for student in students if student.error is not None}
    return failed


def _is_finished(job: StudentJob, workdir: Path, context: Context) -> bool:
    """Whether nothing is left to do but to point the student's name to it, and to send what loggers lack."""
    folder = student_folder(workdir, job.name, job.definition)
    if finished_student(job.name, folder) is None:
        return False
    point(folder.parent, job.name, folder.name)
    if context.loggers:
        send(
            student_run(job.name, job.definition, folder),
            read_metrics(LocalStore(folder)),
            context.loggers,
            context.reporter.say,
        )
    context.reporter.say(f"Student {job.name} is finished ({folder.relative_to(workdir)}); nothing to do.")
    return True


@dataclass(frozen=True)
class _Begun:
    """A job with what its training rests on."""

    job: StudentJob
    frozen: Frozen
    training: tuple[Rows, ...]
    validation: tuple[Rows, ...]
    checkpoints: Checkpoints
    threads: int
    """CPU threads of a step on a CPU."""
    at_once: int
    """Micro-batches of it that are learned from at once."""

    @property
    def key(self) -> tuple[object, ...]:
        """What students that train together agree in."""
        d, feature = self.job.definition, next(iter(self.job.training[0].caches.values())).definition
        config = d.config
        validation = tuple((r.source.dataset.digest, rows_digest(r.rows_N)) for r in self.validation)
        data = d.datasets, tuple(r.source.share for r in self.training), d.views, d.patch_views, d.patch_every, d.live
        views = digest_of(feature.recipe), feature.view_seed
        order = config.draws_seed, config.optimizer.batch, config.streams, config.window_blocks
        how = self.threads, self.at_once
        return *data, *views, *order, *how, self.frozen.manifest.rows_digest, validation


def _begin(job: StudentJob, workdir: Path, settings: DistillConfig, device: str, context: Context) -> _Begun:
    definition, store = job.definition, LocalStore(student_folder(workdir, job.name, job.definition))
    if context.world.first:
        store.sweep()
    training, tokens = training_rows(job.training, definition), trained_tokens(definition.config)
    frozen = freeze(store, job.name, definition, training, job.classifier)
    rows = {r.source.dataset.manifest.name: len(r.rows_N) for r in training}
    words = dealt(rows, definition.config.datasets, definition.config.optimizer.batch, definition.config.streams)
    if words is not None:
        context.reporter.say(f"{job.name}: {words}.")
    usable = [Rows(val, usable_rows(val.dataset, val.caches, 1, tokens, val.dataset.blocks)) for val in job.validation]
    if definition.config.loss.needs_classes:
        usable = [of_known_classes(rows, training) for rows in usable]
        if usable and not any(len(rows.rows_N) for rows in usable):
            context.reporter.say(
                f"{job.name}: no validation image is of a class of its training set: no validation loss."
            )
    validation = tuple(rows for rows in usable if len(rows.rows_N))
    keep, say = settings.keep_checkpoints, context.reporter.say
    checkpoints = Checkpoints(store, frozen.manifest.digest, frozen.manifest.rows_digest, keep, say)
    threads = checkpoints.threads = step_threads(store.root, definition.config, settings)
    entry = last_checkpoint(store.root)
    compiled = settings.compile is True or (settings.compile == "auto" and entry is not None and entry.compiled is True)
    able = context.world.size == 1 and torch.device(pick_device(device)).type == "cpu" and not compiled
    if entry is not None:
        checkpoints.at_once = entry.at_once
    elif able:
        checkpoints.at_once = at_once(definition.config, threads, settings)
    together = checkpoints.at_once or 1 if able else 1
    return _Begun(job, frozen, training, validation, checkpoints, threads, together)


def _train(group: Sequence[_Begun], device: torch.device, settings: DistillConfig, context: Context) -> list[Training]:
    """Train students together; how each was left."""
    names, world = [b.job.name for b in group], context.world
    if len(group) > 1:
        names_of = [source.dataset.manifest.name for source in group[0].job.training]
        dataset = f"{' and '.join(names_of)} {'is' if len(names_of) == 1 else 'are'}"
        together = f"Training {', '.join(names)} in one pass"
        context.reporter.say(f"{together}: {dataset} read and decoded once for all of them.")
    with ExitStack() as stack:
        stack.enter_context(memory_words(names))
        stack.enter_context(torch_threads(group[0].threads, device))
        stack.enter_context(freed_memory_kept(device.type))
        pool = stack.enter_context(ThreadPoolExecutor(readers(world)))
        students = [_build(b, device, settings, context) for b in group]
        feed = _feed(group, pool, device, world, settings.micro_batch)
        check_memory(students, feed, device, world.local_size)
        for student in students:
            student.begin()
            stack.callback(student.close)
        train(students, feed, settings, context)
    return students


def readers(world: World) -> int:
    """Threads of one process that decode images and blocks."""
    return min(max(1, usable_cores() // world.local_size), MAX_READERS)


def _build(begun: _Begun, device: torch.device, settings: DistillConfig, context: Context) -> Training:
    job, definition = begun.job, begun.job.definition
    prepare = None
    if isinstance(job.start, ResolvedEncoder):
        prepare = partial(start_from_weights, job.start, job.name, say=context.reporter.say)
    elif job.start is not None:
        names = tuple(teacher.name for teacher in definition.teachers)
        prepare = partial(start_from, job.start, job.name, teachers=names, say=context.reporter.say)
    config = definition.config
    settings = settings.model_copy(update={"compile": _compiled(begun, device, settings, context)})
    begun.checkpoints.compiled = settings.compile is True
    model = Distiller(config, definition.teachers, device, begun.frozen.statistics, begun.frozen.targets)
    if config.drop_path and not model.student.drop_paths:
        context.reporter.say(f"{job.name}: {config.architecture} has no drop path, so it is trained with 0.")
    return Training(
        job.name,
        definition,
        model,
        begun.frozen.manifest.steps // definition.config.optimizer.epochs,
        checkpoints=begun.checkpoints,
        prepare=prepare,
        world=context.world,
        settings=settings,
        loggers=context.loggers,
        say=context.reporter.say,
        at_once=begun.at_once,
    )


def _compiled(begun: _Begun, device: torch.device, settings: DistillConfig, context: Context) -> bool:
    """Whether a student's steps are compiled: as asked for, as its checkpoints recorded, or as is found to pay now."""
    if settings.compile != "auto":
        return settings.compile
    definition, world, wanted = begun.job.definition, context.world, False
    if world.first:
        entry = last_checkpoint(begun.checkpoints.store.root)
        if entry is not None:
            wanted = entry.compiled is True
        else:
            begins = definition.model_copy(update={"config": begun_now(definition.config, settings)})
            steps = begun.frozen.manifest.steps
            wanted = compiling_pays(begun.job.name, begins, steps, device, context.reporter.say)
    # All processes do what the first one found.
    return world.highest(int(wanted)) > 0


def _feed(
    group: Sequence[_Begun], pool: ThreadPoolExecutor, device: torch.device, world: World, micro: int | None
) -> Feed:
    """Sources with the caches of all students' teachers; in the loop, every teacher is loaded once."""
    first = group[0]
    teachers: dict[str, LiveTeacher] = {}
    for job in (b.job for b in group):
        for name, resolved in (job.teachers or {}).items():
            if name not in teachers:
                cache = next(s.caches[name] for s in job.training if name in s.caches)
                teachers[name] = LiveTeacher(load_encoder(resolved, device=device), cache.definition.compute)
    return Feed(
        training=_merged([b.training for b in group]),
        validation=_merged([b.validation for b in group]),
        definition=first.job.definition,
        pool=pool,
        device=device,
        teachers=teachers,
        share=Share(world.rank, world.size, micro, first.at_once),
        threads=readers(world),
    )


def _merged(students: Sequence[tuple[Rows, ...]]) -> tuple[Rows, ...]:
    """The same rows of every dataset, with the caches of all students' teachers."""
    merged = []
    for rows in zip(*students, strict=True):
        caches = {name: cache for r in rows for name, cache in r.source.caches.items()}
        merged.append(Rows(replace(rows[0].source, caches=caches), rows[0].rows_N))
    return tuple(merged)
