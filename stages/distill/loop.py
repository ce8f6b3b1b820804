"""The training loop of students that learn from the same batches, and all that happens between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

import torch

from unic_pipe.pipeline.encoders.export import export_student
from unic_pipe.pipeline.process.machine import machine_name
from unic_pipe.pipeline.process.progress import Task
from unic_pipe.pipeline.storage import sha256
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.students.adaptors import FILE as ADAPTORS
from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.heads.heads import Heads
from unic_pipe.pipeline.workspace.documents import read_document
from unic_pipe.pipeline.workspace.health import finding
from unic_pipe.pipeline.workspace.ladders import adaptors_of, head_adaptors_of
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.schemas.students import ExportManifest, StudentManifest
from unic_pipe.stages.distill.clock import Bottleneck, Clock, Stretch
from unic_pipe.stages.distill.data.feed import Feed
from unic_pipe.stages.distill.metrics import Meter
from unic_pipe.stages.distill.parallel.sharding import whole
from unic_pipe.stages.distill.parallel.world import Context, World
from unic_pipe.stages.distill.training import Diverged, Training

EXPORT = "export/"


def train(students: Sequence[Training], feed: Feed, settings: DistillConfig, context: Context) -> None:
    """Train students to their ends, or until a stop is requested; those that are done are exported.

    Those that are furthest behind train until they reach the next ones, and all go on together from there. A student
    that diverges is left with its `error`, and the others go on.

    Raises:
        StageError: data are missing or damaged, memory is short.
    """
    on_gpu, stopped = feed.device.type == "cuda", False
    clock = Clock(
        settings.checkpoint_minutes, on_gpu, Bottleneck(feed.times, feed.threads, on_gpu, context.reporter.say)
    )
    for student in students:
        if student.step == student.steps:
            export(student)
    while (active := [s for s in students if s.error is None and s.step < s.steps]) and not stopped:
        first = min(s.step for s in active)
        together = [s for s in active if s.step == first]
        end = min([s.steps for s in together] + [s.step for s in active if s.step > first])
        stopped = train_until(end, together, feed, settings, clock, context)
        for student in together:
            if student.error is not None and len(active) > 1:
                context.reporter.say(f"{student.error.message} The other students go on.")
            elif student.step == student.steps and student.error is None:
                export(student)
    for student in students:
        student.checkpoints.settle()


def train_until(
    end: int, students: Sequence[Training], feed: Feed, settings: DistillConfig, clock: Clock, context: Context
) -> bool:
    """Train students that are at the same step until step `end`, a stop, or the first that diverges; whether stopped."""
    begins, stopped, due = True, False, False
    step, batch_rows, epoch_steps = students[0].step, students[0].config.optimizer.batch, students[0].epoch_steps
    title = f"distill {', '.join(s.name for s in students)}"
    with (
        closing(feed.batches([s.demand for s in students], step, end)) as batches,
        context.reporter.task(title, end * batch_rows, done=step * batch_rows) as task,
    ):
        for batch in clock.waited(batches):
            if begins:
                stopped, due = context.world.between_steps(context.stop, clock.due())
            if stopped:
                break
            for student in students:
                student.learn(batch)
            begins = batch.plan.last
            if not begins:
                continue
            step += 1
            clock.stepped(batch_rows)
            task.advance(batch_rows)
            well = list(students)
            if step % settings.log_every == 0:
                well = write_rows(well, clock.stretch(), task)
            if step % epoch_steps == 0:
                validate(well, feed, context.world)
                warn(well, context)
            if step % epoch_steps == 0 or due:
                well = each(well, Training.save)
            if len(well) < len(students):
                break
    if stopped:
        each([s for s in students if s.error is None and s.saved != step], Training.save)
    return stopped


def write_rows(students: Sequence[Training], stretch: Stretch, task: Task) -> list[Training]:
    """Add a row to everybody's metrics, and show it; those that have not diverged."""
    for student in students:
        student.share_meter()
    losses = ", ".join(f"{s.meter.means()['loss']:.4f}" for s in students)
    task.note(f"loss {losses} · {stretch.note()}")
    return each(students, partial(Training.write_row, stretch=stretch))


def each(students: Sequence[Training], do: Callable[[Training], None]) -> list[Training]:
    """Do something with every student; those that have not diverged."""
    for student in students:
        try:
            do(student)
        except Diverged as error:
            student.error = error
    return [student for student in students if student.error is None]


def warn(students: Sequence[Training], context: Context) -> None:
    """Say once of every student what does not look as it should."""
    for student in students:
        rows = student.log.rows if student.log is not None else []
        found = finding(rows, [t.name for t in student.definition.teachers], student.step, student.steps)
        if found is not None and found.kind not in student.warned:
            student.warned.add(found.kind)
            context.reporter.say(f"{student.name}: {found}")


@torch.no_grad()
def validate(students: Sequence[Training], feed: Feed, world: World) -> None:
    """Add the mean losses over the validation rows to every student's metrics; of several sets, also those of each."""
    meters = {rows.source.dataset.manifest.name: [Meter() for _ in students] for rows in feed.validation}
    with ExitStack() as stack:
        for student in students:
            stack.enter_context(student.measuring())
        for rows, mine in zip(feed.validation, meters.values(), strict=True):
            with closing(feed.validation_batches(rows, [s.demand for s in students])) as batches:
                for batch in batches:
                    for student, meter in zip(students, mine, strict=True):
                        student.measure(batch, meter)
    for i, student in enumerate(students):
        if meters:
            found = {
                name: mine[i].shared(world.sum, world.size) if world.size > 1 else mine[i]
                for name, mine in meters.items()
            }
            student.write_validation(found)


def export(student: Training) -> None:
    """Export a student that has done all its steps; all processes call this, and the first one writes.

    Its last checkpoint may still be written meanwhile; a finished student has one, so the manifest waits for it.
    """
    store, config = student.store, student.config
    fresh, adaptors = build_student(config), b""
    with student.measuring():
        weights = whole(student.model.student.state(), student.world.first)
        ladder = whole(student.model.ladder.state_dict(), student.world.first)
        if student.world.first:
            fresh.load(weights)
            adaptors = _adaptors(student, ladder, fresh.depth)
    if not student.world.first:
        return
    digests = export_student(
        store,
        fresh.encoder,
        architecture=config.architecture,
        model_args=fresh.model_args,
        image_size=config.image_size,
        readout=fresh.readout,
        mean=config.mean,
        std=config.std,
        prefix=EXPORT,
    )
    store.put(f"{EXPORT}{ADAPTORS}", adaptors)
    manifest = ExportManifest(
        student=digest_of(student.definition),
        step=student.steps,
        weights=digests.weights,
        config=digests.config,
        adaptors=sha256(adaptors),
        machine=machine_name(str(student.model.device)),
    )
    student.checkpoints.settle()
    store.put(f"{EXPORT}manifest.json", manifest.to_bytes())
    point(store.root.parent, student.name, store.root.name)


def _adaptors(student: Training, ladder: Mapping[str, torch.Tensor], depth: int) -> bytes:
    """What is exported of a student's ladder or heads, a state dict."""
    folder, running = student.store.root, student.model.running
    manifest = read_document(folder / "manifest.json", StudentManifest)
    assert manifest is not None, "written before training"
    moving, predictor = running.state() if running is not None else {}, student.model.ladder
    if isinstance(predictor, Heads):
        return head_adaptors_of(manifest, folder, predictor, ladder, moving).to_bytes()
    return adaptors_of(manifest, folder, ladder, moving, depth).to_bytes()
