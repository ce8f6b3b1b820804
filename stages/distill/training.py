"""One student in training: model, optimizer, schedules, and where its results go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unic_pipe.pipeline.loggers import Maker
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.labels import setting_of
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.checkpoints import Checkpoints
from unic_pipe.stages.distill.clock import Stretch
from unic_pipe.stages.distill.data.batches import Batch
from unic_pipe.stages.distill.data.feed import Demand
from unic_pipe.stages.distill.metrics import Meter, MetricsLog, measures, student_run
from unic_pipe.stages.distill.model.average import WeightAverage
from unic_pipe.stages.distill.model.balance import Balance
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.loss import entries
from unic_pipe.stages.distill.model.schedule import configured_rates, make_optimizer, set_rate
from unic_pipe.stages.distill.model.standardization import momenta
from unic_pipe.stages.distill.parallel.batch_norm import running_statistics
from unic_pipe.stages.distill.parallel.copies import Copies
from unic_pipe.stages.distill.parallel.sharding import Parallel, local, optimizer_state_as, whole
from unic_pipe.stages.distill.parallel.world import World


class Diverged(StageError):
    """A loss or weight of one student is not finite; students that train beside it may go on."""


class Learned(NamedTuple):
    """What one micro-batch gave."""

    measures: dict[str, Tensor]
    images: dict[str, int]
    """How many images each is the mean of."""
    entries: Tensor
    """What its losses are shared out over (see `model.loss`), a scalar."""


class Training:
    """A student in training. `step` is the number of steps done; `error` is why it stopped early."""

    def __init__(
        self,
        name: str,
        definition: StudentDefinition,
        model: Distiller,
        epoch_steps: int,
        *,
        checkpoints: Checkpoints,
        prepare: Callable[[Distiller], None] | None = None,
        world: World | None = None,
        settings: DistillConfig | None = None,
        loggers: Mapping[str, Maker] | None = None,
        say: Callable[[str], None] = print,
        at_once: int = 1,
    ) -> None:
        """Args:
        name: for messages.
        definition: what the student is made from.
        model: at its seeded initialisation.
        epoch_steps: steps of an epoch.
        checkpoints: of this student; its store is the student's folder.
        prepare: gives a training that starts from another student its first weights.
        world: the processes that train together; only the first writes.
        settings: how; whether steps are compiled is decided by then.
        loggers: of other programs that get the metrics.
        say: told once what goes wrong with them.
        at_once: micro-batches that are learned from at once (see `parallel.copies`), on torch's threads of now.
        """
        self.name, self.definition, self.model = name, definition, model
        self.checkpoints, self.prepare = checkpoints, prepare
        self.world, self.settings = world or World(), settings or DistillConfig()
        self.loggers, self.say = loggers or {}, say
        self.config, optimizer = model.config, model.config.optimizer
        self.epoch_steps = epoch_steps
        self.rates = configured_rates(optimizer, self.epoch_steps)
        self.momenta = momenta(optimizer.epochs, self.epoch_steps)
        self.average: WeightAverage | None = None
        self.step, self.saved, self.meter = 0, -1, Meter()
        self.error: Diverged | None = None
        self.warned: set[str] = set()
        """Kinds of findings that were told."""
        self.balance: Balance | None = None
        """Of a step that the metrics tell of."""
        self.at_once = at_once
        self._copies: Copies[Distiller] | None = None
        self._waiting: list[Batch] = []
        """Micro-batches that are learned from with the next one."""
        self._learned: list[Learned] = []
        """The micro-batches of a step that is not done yet."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.rates)

    @property
    def demand(self) -> Demand:
        """What it takes of every batch."""
        config, branches = self.config, len(self.model.student.drop_paths)
        teachers, epochs = len(self.definition.teachers), config.optimizer.epochs
        shown = config.loss.needs_classes, self.model.cells, frozenset(self.model.queues), config.noise > 0
        return Demand(config.image_size, config.image_sizes, self.model.standards, teachers, branches, epochs, *shown)

    @property
    def store(self) -> LocalStore:
        """The student's folder."""
        return self.checkpoints.store

    def begin(self) -> None:
        """Load the last good checkpoint, or take the first step's state; open the metrics.

        Raises:
            StageError: processes found different checkpoints.
        """
        found = self.checkpoints.load()
        self._require_same_step(found[0] if found is not None else 0)
        if found is not None:
            self.model.student.load(found[1]["student"])
            self.model.ladder.load_state_dict(found[1]["ladder"])
        elif self.prepare is not None:
            self.prepare(self.model)
        if self.settings.compile is True:
            self.model.compile_parts()
        self.parallel = Parallel(self.model, self.model.parts, self.world, self.settings.shard)
        self.optimizer = make_optimizer(self.model.student, self.model.ladder, self.config.optimizer)
        if self.at_once > 1:
            self._copies = Copies(self.model, self.at_once, torch.get_num_threads())
        if self.config.ema is not None:
            self.average = WeightAverage([self.model.student, self.model.ladder], self.config.ema)
        if found is not None:
            self.step, state = found
            self.optimizer.load_state_dict(optimizer_state_as(state["optimizer"], self.optimizer))
            self.meter = Meter.from_state(state["meter"])
            if self.average is not None:
                self.average.load(state["average"])
            if self.model.running is not None:
                self.model.running.load(state["running"])
        self.log = MetricsLog(self.store, self.step) if self.world.first else None
        if self.log is not None:
            self.log.send_to(self.loggers, student_run(self.name, self.definition, self.store.root), self.say)

    def _require_same_step(self, step: int) -> None:
        highest, lowest = self.world.highest(step), -self.world.highest(-step)
        if highest != lowest:
            raise StageError(
                f"Processes found checkpoints of different steps of student {self.name} ({lowest:,} and {highest:,}).",
                f"{self.store.root} must be the same folder on every machine, and in the same state.",
            )

    @property
    def frozen(self) -> bool:
        """Whether the ladder alone learns in this step."""
        return self.step < self.config.optimizer.frozen_steps

    def close(self) -> None:
        """Close the metrics, after the last checkpoint."""
        if self._copies is not None:
            self._copies.close()
        self.checkpoints.close()
        if self.log is not None:
            self.log.close()

    def learn(self, batch: Batch) -> None:
        """Learn from a batch; the last micro-batch of a step ends it. Those that are learned from at once wait for each other."""
        self._waiting.append(batch)
        if len(self._waiting) < self.at_once and not batch.plan.last:
            return
        batches, self._waiting = self._waiting, []
        whole_step = batch.plan.last and not self._learned and len(batches) == self.world.size == 1
        if not self._learned:
            self._begin_step()
        if self._copies is None or len(batches) == 1:
            with self.parallel.syncing(batch.plan.last):
                self._learned.append(self._learn_from(self.parallel.call, (batch, self.balance), whole_step))
        else:
            told = [None if self.balance is None else self.balance.another() for _ in batches]
            self._learned += self._copies.each(self._learn_from, list(zip(batches, told, strict=True)))
            for balance in told:
                if self.balance is not None and balance is not None:
                    self.balance.add(balance)
        if batch.plan.last:
            end = partial(self._end_step, whole_step)
            self.meter.add(end() if self._copies is None else self._copies.apart(end))

    def _begin_step(self) -> None:
        told = (self.step + 1) % self.settings.log_every == 0
        self.balance = Balance(self.model.sizes, self.model.device) if told else None
        # Gradients of micro-batches add up, so they are cleared before the first.
        for parameter in self.parallel.parameters:
            parameter.grad = None
        if self.model.student.training is self.frozen:
            for model in [self.model] if self._copies is None else self._copies.models:
                model.train()
                if self.frozen:
                    model.student.eval()

    def _learn_from(
        self, model: nn.Module, batch_and_balance: tuple[Batch, Balance | None], whole_step: bool = False
    ) -> Learned:
        """Add a micro-batch's gradients to those of a model."""
        batch, balance = batch_and_balance
        # The entries of all micro-batches of all processes are known at the end; until then any count will do.
        count = None if whole_step else float(self.config.optimizer.batch)
        losses, keep_BT, total = model(batch, count=count, frozen=self.frozen, balance=balance)
        # What is compiled lets nobody go through it twice.
        if balance is not None and self.settings.compile is not True:
            with self.parallel.reading(batch.plan.last):
                balance.read_gradients(losses, keep_BT)
        total.backward()
        found = measures(losses, keep_BT, total)
        images = {name: losses.images(name) for name in found}
        return Learned(found, images, entries(self.config.loss, keep_BT))

    def _end_step(self, whole_step: bool) -> dict[str, Tensor]:
        """The optimizer's step, after its last micro-batch; the step's measures."""
        found = self._learned[0].measures if whole_step else self._correct_gradients()
        self._learned = []
        self._update()
        return found

    def _correct_gradients(self) -> dict[str, Tensor]:
        """Divide by the entries of the global batch; the step's measures, whose mean over processes is the batch's.

        DDP and FSDP2 average gradients over processes, and the loss is a sum over them.
        """
        count = self.world.sum(torch.stack([x.entries for x in self._learned]).sum())
        factor = self.config.optimizer.batch * self.world.size / count.clamp(min=1)
        self.parallel.scale_gradients(factor)
        found = {}
        # In one order for all processes, whatever their parts have.
        for name in sorted({name for x in self._learned for name in x.measures}):
            parts = [(x.measures[name], x.images[name]) for x in self._learned if name in x.measures]
            images = sum(count for _, count in parts)
            found[name] = torch.stack([mean * (count / images) for mean, count in parts]).sum()
        return {**found, "loss": torch.stack([x.measures["loss"] for x in self._learned]).sum() * factor}

    def _update(self) -> None:
        """The optimizer's step, and all that follows it."""
        if self.model.running is not None:
            total = self.world.sum if self.world.size > 1 else None
            self.model.running.update(float(self.momenta[self.step]), total)
        set_rate(self.optimizer, float(self.rates[self.step]))
        if self.config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parallel.parameters, self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.step += 1

    @torch.no_grad()
    def measure(self, batch: Batch, meter: Meter) -> None:
        """Add the losses of a validation batch to `meter`; nothing is dropped."""
        losses, keep_BT, total = self.model(batch, training=False)
        meter.add(measures(losses, keep_BT, total), weight=len(batch.plan.rows_B) * batch.plan.counted)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Evaluation mode, with the weights that are exported (the averages where there are some)."""
        self.model.eval()
        with self.average.in_place() if self.average is not None else nullcontext():
            yield
        self.model.train()

    def share_meter(self) -> None:
        """Make the meter that of all processes."""
        if self.world.size > 1:
            self.meter = self.meter.shared(self.world.sum, self.world.size)

    def write_row(self, stretch: Stretch) -> None:
        """Add the means since the last row to the metrics.

        Raises:
            Diverged: the loss is not finite.
            StageError: the last checkpoint could not be written.
        """
        self.checkpoints.check()
        means = self.meter.means()
        self.require_finite(means["loss"], "loss")
        if self.balance is not None:
            means |= self.balance.columns(self.world.sum if self.world.size > 1 else None)
            self.balance = None
        if self.log is not None:
            lr = float(self.rates[self.step - 1])
            self.log.add({"step": self.step, "epoch": self.epoch, "lr": lr, **stretch.known(), **means})
        self.meter = Meter()

    def write_validation(self, meters: Mapping[str, Meter]) -> None:
        """Add the means over the validation rows to the metrics; of several datasets, over each's and over all of them."""
        if self.log is not None:
            each = [meter.means(f"val@{name}/") for name, meter in meters.items()] if len(meters) > 1 else []
            weights = self.settings.validation if isinstance(self.settings.validation, dict) else None
            means = Meter.together(meters, weights).means("val/")
            self.log.add(
                {"step": self.step, "epoch": self.epoch, **means, **{k: v for m in each for k, v in m.items()}}
            )

    def save(self) -> None:
        """Begin to write the metrics, and then a checkpoint.

        Raises:
            Diverged: the weights are not finite; the checkpoint before is kept.
            StageError: the checkpoint before could not be written.
        """
        self.share_meter()
        weights = [*self.model.parameters(), *running_statistics(self.model)]
        norms = torch.stack(torch._foreach_norm([local(x.detach()) for x in weights]))
        self.require_finite(float(self.world.sum(norms.sum())), "weights")
        self.require_finite(self.meter.means().get("loss", 0.0), "loss")
        state = {**self._state(), "meter": self.meter.state()}
        if self.log is not None:
            self.checkpoints.save(self.step, state, partial(self.log.flush, len(self.log.rows)))
        self.saved = self.step

    def _state(self) -> dict[str, object]:
        """What a checkpoint keeps, whole on the first process; all call this."""
        state: dict[str, object] = {
            "student": self.model.student.state(),
            "ladder": self.model.ladder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.state()
        if self.model.running is not None:
            state["running"] = self.model.running.state()
        found: dict[str, object] = whole(state, self.world.first)
        return found

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.epoch_steps

    def require_finite(self, value: float, what: str) -> None:
        """Stop a training that has diverged."""
        if not math.isfinite(value):
            raise Diverged(
                f"Student {self.name}: {what} not finite at step {self.step:,} (epoch {self.epoch:.1f}). "
                "The last good checkpoint is kept.",
                f"Lower students.{setting_of(self.name)}.optimizer.lr, set optimizer.clip_norm: 1.0, or dtype: float32.",
            )
