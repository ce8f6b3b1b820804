"""One student in training: model, optimizer, schedules, and where its results go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from pipeline.storage import LocalStore
from schemas.errors import StageError
from schemas.students import StudentDefinition
from stages.distill.average import WeightAverage
from stages.distill.checkpoints import Checkpoints
from stages.distill.loader import Batch
from stages.distill.metrics import Meter, MetricsLog, measures
from stages.distill.model import Distiller
from stages.distill.running import momenta
from stages.distill.schedule import configured_rates, make_optimizer


class Diverged(StageError):
    """A loss or weight of one student is not finite; students that train beside it may go on."""


class Training:
    """A student in training. `step` is the number of steps done; `error` is why it stopped early."""

    def __init__(
        self,
        name: str,
        definition: StudentDefinition,
        model: Distiller,
        rows: int,
        *,
        checkpoints: Checkpoints,
        prepare: Callable[[Distiller], None] | None = None,
    ) -> None:
        """Args:
        name: for messages.
        definition: what the student is made from.
        model: at its seeded initialisation.
        rows: number of usable rows.
        checkpoints: of this student; its store is the student's folder.
        prepare: gives a training that starts from another student its first weights.
        """
        self.name, self.definition, self.model = name, definition, model
        self.checkpoints, self.prepare = checkpoints, prepare
        self.config, settings = model.config, model.config.optimizer
        self.epoch_steps = rows // settings.batch
        self.rates = configured_rates(settings, self.epoch_steps)
        self.momenta = momenta(settings.epochs, self.epoch_steps)
        self.optimizer = make_optimizer([model.student, model.ladder], settings)
        self.average: WeightAverage | None = None
        self.step, self.saved, self.meter = 0, -1, Meter()
        self.error: Diverged | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.rates)

    @property
    def store(self) -> LocalStore:
        """The student's folder."""
        return self.checkpoints.store

    def begin(self) -> None:
        """Load the last good checkpoint, or take the first step's state; open the metrics."""
        found = self.checkpoints.load()
        if found is None and self.prepare is not None:
            self.prepare(self.model)
        if self.config.ema is not None:
            self.average = WeightAverage([self.model.student, self.model.ladder], self.config.ema)
        if found is not None:
            self.step, state = found
            self.model.student.vit.load_state_dict(state["student"])
            self.model.ladder.load_state_dict(state["ladder"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.meter = Meter.from_state(state["meter"])
            if self.average is not None:
                self.average.load(state["average"])
            if self.model.running is not None:
                self.model.running.load(state["running"])
        self.log = MetricsLog(self.store, self.step)

    def close(self) -> None:
        """Close the metrics."""
        self.log.close()

    def learn(self, batch: Batch) -> None:
        """One step of training."""
        losses, keep_BT, total = self.model(batch, momentum=float(self.momenta[self.step]))
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[self.step])
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.step += 1
        self.meter.add(measures(losses, keep_BT, total))

    @torch.no_grad()
    def measure(self, batch: Batch, meter: Meter) -> None:
        """Add the losses of a validation batch to `meter`; nothing is dropped."""
        losses, keep_BT, total = self.model(batch, training=False)
        meter.add(measures(losses, keep_BT, total), weight=len(batch.plan.rows_B))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Evaluation mode, with the weights that are exported (the averages where there are some)."""
        self.model.eval()
        with self.average.in_place() if self.average is not None else nullcontext():
            yield
        self.model.train()

    def write_row(self, data_wait: float) -> None:
        """Add the means since the last row to the metrics.

        Raises:
            Diverged: the loss is not finite.
        """
        means = self.meter.means()
        self.require_finite(means["loss"], "loss")
        lr = float(self.rates[self.step - 1])
        self.log.add({"step": self.step, "epoch": self.epoch, "lr": lr, "data_wait": data_wait, **means})
        self.meter = Meter()

    def write_validation(self, meter: Meter) -> None:
        """Add the means over the validation rows to the metrics."""
        self.log.add({"step": self.step, "epoch": self.epoch, **meter.means("val/")})

    def save(self) -> None:
        """Write the metrics, then a checkpoint.

        Raises:
            Diverged: the weights are not finite; the checkpoint before is kept.
        """
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.model.parameters()]))
        self.require_finite(float(norms.sum()), "weights")
        self.require_finite(self.meter.means().get("loss", 0.0), "loss")
        self.log.flush()
        state = {
            "student": self.model.student.vit.state_dict(),
            "ladder": self.model.ladder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meter": self.meter.state(),
        }
        if self.average is not None:
            state["average"] = self.average.state()
        if self.model.running is not None:
            state["running"] = self.model.running.state()
        self.checkpoints.save(self.step, state)
        self.saved = self.step

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
                f"Lower students.{self.name}.optimizer.lr, set optimizer.clip_norm: 1.0, or dtype: float32.",
            )
