"""What `bench` measures of a student: passes over a cache as training makes them, and the pieces of a step alone.

The bench gets this from the command that runs it, since stages do not import each other.

Shapes: B images of a batch, N rows, P patch tokens, D student width, L ladder blocks, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import ResolvedEncoder, load_encoder
from unic_pipe.pipeline.process.crew import Crew, crew_of_one
from unic_pipe.pipeline.process.memory import freed_memory_kept
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.students.ladder import Ladder
from unic_pipe.pipeline.views.render import normalize
from unic_pipe.pipeline.views.rows import Rendering, finished_views
from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.bench import Resource
from unic_pipe.schemas.config import DistillConfig, TokenType
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.checkpoints import Checkpoints
from unic_pipe.stages.distill.data.batches import Batch, Share
from unic_pipe.stages.distill.data.feed import Feed
from unic_pipe.stages.distill.data.frozen import freeze
from unic_pipe.stages.distill.data.live import LiveTeacher, live_targets
from unic_pipe.stages.distill.data.rows import Rows, Source, rows_digest, training_rows
from unic_pipe.stages.distill.data.targets import AnyTargets, Pair, read_pairs
from unic_pipe.stages.distill.measure.ladder import ladder_operands, ladder_step, multiply
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.parallel.copies import at_once
from unic_pipe.stages.distill.run import MAX_READERS
from unic_pipe.stages.distill.training import Training

PIECES: Mapping[str, Resource] = {
    "student step": "device",
    "targets": "device",
    "cache read": "host",
    "gather": "host",
    "image decode": "host",
    "render": "host",
}
"""`cache read` verifies and decompresses blocks, `gather` picks a batch's rows, `targets` is the inverse transform with
the standardization, `student step` is student + ladder + loss + optimizer on tensors in memory."""
VIEW_PIECES = {"read": "image decode", "decode": "image decode", "render": "render"}
"""The pieces of a view, and what they are called here."""
KEPT_BATCHES = 2
"""Whole batches that are held in memory for the student-only step; they take turns."""
CPU_BATCH = 64
"""Images of a step on a CPU, at most: its time grows with them, and a whole batch may take minutes."""


@dataclass(frozen=True)
class ReadyTargets:
    """Targets as the loss takes them, in the place of stored ones."""

    values: Tensor

    def decode(self, standard: str) -> Tensor:
        """The values."""
        del standard
        return self.values


class StudentBench:
    """One student, its cached features and its teachers, ready to be timed."""

    def __init__(
        self,
        label: str,
        definition: StudentDefinition,
        dataset: Dataset,
        features: Mapping[str, Path],
        teachers: Mapping[str, ResolvedEncoder],
        device: str,
        folder: Path,
        stop: Stop,
        classifier: Callable[[str], Doubles] | None = None,
        settings: DistillConfig | None = None,
    ) -> None:
        """Args:
        label: the student's name.
        definition: as configured, of one view and dataset; on a CPU the batch may be cut down.
        dataset: the training samples.
        features: feature folder of every teacher, finished for the definition's blocks.
        teachers: the same teachers, to run in the loop.
        device: where it trains.
        folder: a working folder for what training writes.
        stop: polled between steps; a repetition then ends early.
        classifier: gives a teacher's, for a loss about logits.
        settings: how it trains: compiled or not.

        Raises:
            UserError: the student cannot be built, or there are too few rows for a batch.
        """
        self.device, self.dataset, self.stop = torch.device(device), dataset, stop
        caches = {name: FeatureCache.open(path) for name, path in features.items()}
        (self.rows,) = training_rows([Source(dataset, caches)], definition)
        rows_N = self.rows.rows_N
        self.definition = definition = _small(definition, len(rows_N), self.device)
        self.config, self.batch = definition.config, definition.config.optimizer.batch
        store = LocalStore(student_folder(folder, label, definition))
        frozen = freeze(store, label, definition, [self.rows], classifier)
        model = Distiller(self.config, definition.teachers, self.device, frozen.statistics, frozen.targets)
        checkpoints = Checkpoints(store, frozen.manifest.digest, rows_digest(rows_N), 1, print)
        self.epoch_steps = self.steps = len(rows_N) // self.batch
        self.at_once = 1
        if self.device.type == "cpu":
            self.at_once = at_once(self.config, self.config.threads, settings or DistillConfig())
        self.training = Training(
            label,
            definition,
            model,
            self.epoch_steps,
            checkpoints=checkpoints,
            settings=settings,
            at_once=self.at_once,
        )
        self.live = {
            name: LiveTeacher(load_encoder(encoder, device=device), caches[name].definition.compute)
            for name, encoder in teachers.items()
        }
        self._resources = ExitStack()
        self._resources.enter_context(torch_threads(self.config.threads, self.device))
        self._resources.enter_context(freed_memory_kept(self.device.type))
        self._pool = self._resources.enter_context(ThreadPoolExecutor(min(usable_cores(), MAX_READERS)))
        self.training.begin()
        self._resources.callback(self.training.close)
        self._batches = self._first_batches()

    def close(self) -> None:
        """Give back threads and files."""
        self._resources.close()

    @property
    def images(self) -> int:
        """Images of a repetition."""
        return self.steps * self.batch

    def prepare(self, seconds: float) -> None:
        """Run everything once, and measure as many steps as take about `seconds` with teachers in the loop."""
        whole, self.steps = self.epoch_steps, 1
        self.lap(Stopwatch(device=str(self.device)))
        watch = Stopwatch(device=str(self.device))
        self.lap(watch)
        slowest = max(watch.wall("wall").median, watch.wall("live").median)
        self.steps = min(whole, max(2, round(seconds / slowest)))
        self._cut()

    def lap(self, watch: Stopwatch) -> None:
        """One repetition: a pass from the cache, the same with live teachers, then every piece alone."""
        with watch.time("wall"):
            self._pass(live=False)
        with watch.time("live"):
            self._pass(live=True)
        with watch.time("student step"):
            self._student_steps()
        with watch.time("targets"):
            self._decode_targets()
        with crew_of_one(1) as crew:
            self._host_pieces(watch, crew)
        with watch.time("teachers"):
            self._run_teachers()
        self._ladder(watch)

    def _measured(self) -> Iterator[int]:
        """The numbers of the measured steps, up to a stop."""
        return (i for i in range(self.steps) if not self.stop.requested)

    def _kept(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Those that are held in memory, by turns, for the measured steps."""
        for i in self._measured():
            for part in range(self.at_once):
                yield batches[(i * self.at_once + part) % len(batches)]

    def _pass(self, live: bool) -> None:
        """The steps as training makes them, from nothing: every block is read and every view rendered."""
        self.training.step = 0
        with closing(self._feed(live).batches([self.training.demand], 0, self.steps)) as batches:
            for batch in batches:
                if self.stop.requested:
                    return
                self.training.learn(batch)

    def _feed(self, live: bool) -> Feed:
        return Feed(
            training=(self.rows,),
            validation=(),
            definition=self.definition.model_copy(update={"live": live}),
            pool=self._pool,
            device=self.device,
            teachers=self.live if live else {},
            share=Share(at_once=self.at_once),
        )

    def _cut(self) -> None:
        """Leave rows for exactly the measured steps: a pass then reads what it uses, and no more."""
        rows_N = self.rows.rows_N[: self.steps * self.batch]
        blocks = int(rows_N[-1]) // self.dataset.block_rows + 1
        self.rows = Rows(self.rows.source, rows_N)
        self.definition = self.definition.model_copy(update={"blocks": blocks})
        self.epoch_steps = self.steps
        self._batches = self._first_batches()

    def _first_batches(self) -> list[Batch]:
        """The micro-batches of some steps on the device, with images at the teachers' sizes as well."""
        found: list[Batch] = []
        for live in (False, True):
            with closing(
                self._feed(live).batches([self.training.demand], 0, min(KEPT_BATCHES, self.epoch_steps))
            ) as batches:
                for i, batch in enumerate(batches):
                    if live:
                        found[i] = replace(found[i], images=batch.images)
                    else:
                        found.append(batch)
        return found

    def _student_steps(self) -> None:
        self.training.step = 0
        ready = [replace(batch, targets=self._ready(batch)) for batch in self._batches]
        for batch in self._kept(ready):
            self.training.learn(batch)

    def _ready(self, batch: Batch) -> Mapping[Pair, AnyTargets]:
        return {pair: cast(AnyTargets, ReadyTargets(values)) for pair, values in self._decoded(batch).items()}

    def _decoded(self, batch: Batch) -> dict[Pair, Tensor]:
        standards = self.training.model.standards
        return {pair: raw.decode(standards[pair].name) for pair, raw in batch.targets.items()}

    def _decode_targets(self) -> None:
        for batch in self._kept(self._batches):
            self._decoded(batch)

    def _run_teachers(self) -> None:
        """All teachers' forward passes, as a step with live teachers makes them."""
        wanted = {pair: {s.name: s} for pair, s in self.training.model.standards.items()}
        for batch in self._kept(self._batches):
            live_targets(self.live, batch.images, read_pairs(wanted, batch.plan.patches))

    def _host_pieces(self, watch: Stopwatch, crew: Crew) -> None:
        """What the host does for a pass, one thing after the other, on one core."""
        feed, clock = self._feed(live=False), Stopwatch(VIEW_PIECES)
        first = next(iter(self.rows.source.caches.values())).definition
        wanted = {pair: {s.name: s} for pair, s in self.training.model.standards.items()}
        with ThreadPoolExecutor(1) as alone:
            feed.pool = alone
            reader = feed._reader(self.rows, wanted, feed.window(self.definition.blocks))
            plans = feed._plans([self.training.demand], 0)
            for _, plan in zip(self._measured(), plans, strict=False):
                keys = reader.keys(plan.rows_B, plan.view, plan.patches)
                with watch.time("cache read"):
                    reader.window.get(keys)
                with watch.time("gather"):
                    reader.read(plan.rows_B, plan.view, plan.patches)
                rendering = Rendering.of(first, plan.view, self.config.image_size)
                finished_views(self.dataset, plan.rows_B.tolist(), [rendering], crew, clock)
        for piece, lap in clock.laps[-1].items():
            watch.add(VIEW_PIECES[piece], lap)

    def _ladder(self, watch: Stopwatch) -> None:
        """The ladder on given block outputs, and its matrix products alone; nothing of other heads."""
        model, size = self.training.model, self.config.image_size
        if not isinstance(model.ladder, Ladder):
            return
        images_B3SS = torch.cat([batch.images[size] for batch in self._batches[: self.at_once]])
        x_B3SS = normalize(images_B3SS, self.config.mean, self.config.std)
        with torch.no_grad(), model.autocast():
            outputs = model.student(x_B3SS, model.ladder.rungs.blocks)
        inputs: dict[TokenType, list[Tensor]] = {
            "cls": [x.detach().requires_grad_() for x in outputs.cls_LBD],
            "patch": [x.detach().requires_grad_() for x in outputs.patch_LBPD],
        }
        operands = ladder_operands(model.ladder, inputs)
        for _ in self._measured():
            with watch.time("ladder"):
                ladder_step(model, inputs)
            with watch.time("ladder products"):
                multiply(operands)


def _small(definition: StudentDefinition, rows: int, device: torch.device) -> StudentDefinition:
    """A definition of one view whose steps are all of a kind, on a CPU with a smaller batch: a multiple of the streams, and
    no more than there are rows."""
    optimizer, streams = definition.config.optimizer, definition.config.streams
    most = min(optimizer.batch, rows, CPU_BATCH if device.type == "cpu" else optimizer.batch)
    smaller = optimizer.model_copy(update={"batch": max(streams, most // streams * streams), "frozen_steps": 0})
    config = definition.config.model_copy(update={"optimizer": smaller})
    return definition.model_copy(update={"config": config})
