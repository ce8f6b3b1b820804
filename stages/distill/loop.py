"""The training loop, and all that happens between two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.progress import Reporter
from pipeline.stopping import Stop
from pipeline.storage import LocalStore
from schemas.config import DistillConfig
from schemas.errors import StageError
from stages.distill.checkpoints import Checkpoints
from stages.distill.loader import Batch, BatchPlan, Loader, sequential_plans, training_plans
from stages.distill.metrics import Meter, MetricsLog, measures
from stages.distill.model import Distiller
from stages.distill.schedule import configured_rates, make_optimizer


@dataclass(frozen=True)
class Data:
    """A loader and the rows that it may be asked for."""

    loader: Loader
    rows_N: NDArray[np.int64]


class Training:
    """A student in training: model, optimizer, schedule, data and where results go."""

    def __init__(
        self,
        name: str,
        model: Distiller,
        data: Data,
        validation: Data | None,
        *,
        block_rows: int,
        views: int,
        checkpoints: Checkpoints,
        distill: DistillConfig,
    ) -> None:
        self.name, self.model, self.data, self.validation = name, model, data, validation
        self.block_rows, self.views = block_rows, views
        self.checkpoints, self.distill = checkpoints, distill
        self.config = model.config
        self.batch = self.config.optimizer.batch
        self.epoch_steps = len(data.rows_N) // self.batch
        self.rates = configured_rates(self.config.optimizer, self.epoch_steps)
        self.optimizer = make_optimizer([model.student, model.ladder], self.config.optimizer)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.rates)

    def run(self, reporter: Reporter, stop: Stop) -> int:
        """Train from the last good checkpoint to the end, or until a stop is requested; returns the steps done.

        Raises:
            StageError: a loss or weight is not finite, data are missing or damaged, memory is short.
        """
        step, meter = self.resume()
        clock = Clock(self.distill.checkpoint_minutes)
        images = self.steps * self.batch
        with (
            closing(MetricsLog(self.store, step)) as log,
            closing(self.data.loader.batches(self.plans(step))) as batches,
            reporter.task(f"distill {self.name}", images, done=step * self.batch) as task,
        ):
            for batch in clock.waited(batches):
                if stop.requested:
                    break
                losses, keep_BT, total = self.model(batch)
                self.update(total, step)
                step += 1
                meter.add(measures(losses, keep_BT, total))
                task.advance(self.batch)
                if step % self.distill.log_every == 0:
                    task.note(f"loss {self.write_row(log, step, meter, clock):.4f}")
                    meter = Meter()
                if step % self.epoch_steps == 0:
                    self.validate(log, step)
                if step % self.epoch_steps == 0 or clock.due():
                    self.save(step, meter, log)
                    clock.saved = step
            if stop.requested and clock.saved != step:
                self.save(step, meter, log)
        return step

    def resume(self) -> tuple[int, Meter]:
        """Load the last good checkpoint, if there is one: the steps done, and the running means."""
        found = self.checkpoints.load()
        if found is None:
            return 0, Meter()
        step, state = found
        self.model.student.vit.load_state_dict(state["student"])
        self.model.ladder.load_state_dict(state["ladder"])
        self.optimizer.load_state_dict(state["optimizer"])
        return step, Meter.from_state(state["meter"])

    def plans(self, start: int) -> Iterator[BatchPlan]:
        """The batches from step `start` on."""
        return training_plans(
            self.data.rows_N,
            self.block_rows,
            seed=self.config.seed,
            epochs=self.config.optimizer.epochs,
            views=self.views,
            batch=self.batch,
            streams=self.config.streams,
            window=self.config.window_blocks,
            start=start,
        )

    def update(self, total: torch.Tensor, step: int) -> None:
        """One step of the optimizer at the learning rate of `step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[step])
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if self.config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()

    def write_row(self, log: MetricsLog, step: int, meter: Meter, clock: Clock) -> float:
        """Add the means since the last row to the metrics; returns the mean loss.

        Raises:
            StageError: the loss is not finite.
        """
        means = meter.means()
        self.require_finite(means["loss"], "loss", step)
        lr, wait = float(self.rates[step - 1]), clock.waited_fraction()
        log.add({"step": step, "epoch": step / self.epoch_steps, "lr": lr, "data_wait": wait, **means})
        return means["loss"]

    def save(self, step: int, meter: Meter, log: MetricsLog) -> None:
        """Write the metrics, then a checkpoint, unless the weights are not finite (the old one is kept)."""
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.model.parameters()]))
        self.require_finite(float(norms.sum()), "weights", step)
        self.require_finite(meter.means().get("loss", 0.0), "loss", step)
        log.flush()
        state = {
            "student": self.model.student.vit.state_dict(),
            "ladder": self.model.ladder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meter": meter.state(),
        }
        self.checkpoints.save(step, state)

    def require_finite(self, value: float, what: str, step: int) -> None:
        """Stop a training that has diverged."""
        if not math.isfinite(value):
            raise StageError(
                f"Student {self.name}: {what} not finite at step {step:,} (epoch {step / self.epoch_steps:.1f}). "
                "The last good checkpoint is kept.",
                f"Lower students.{self.name}.optimizer.lr, set optimizer.clip_norm: 1.0, or dtype: float32.",
            )

    @torch.no_grad()
    def validate(self, log: MetricsLog, step: int) -> None:
        """Add the mean losses over the validation rows to the metrics; nothing is dropped."""
        if self.validation is None:
            return
        meter = Meter()
        self.model.eval()
        with closing(self.validation.loader.batches(sequential_plans(self.validation.rows_N, self.batch))) as batches:
            for batch in batches:
                losses, keep_BT, total = self.model(batch, training=False)
                meter.add(measures(losses, keep_BT, total), weight=len(batch.plan.rows_B))
        self.model.train()
        log.add({"step": step, "epoch": step / self.epoch_steps, **meter.means("val/")})

    @property
    def store(self) -> LocalStore:
        """The student's folder."""
        return self.checkpoints.store


class Clock:
    """Knows how long steps waited for data, and when a checkpoint is due."""

    def __init__(self, checkpoint_minutes: float) -> None:
        self._every_s = 60 * checkpoint_minutes
        self._row = self._checkpoint = time.monotonic()
        self._waited_s = 0.0
        self.saved = -1
        """Step of the last checkpoint that this run wrote."""

    def waited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time until each arrives is counted."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self._waited_s += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def waited_fraction(self) -> float:
        """Fraction of the time since the last call that was spent waiting for data."""
        now = time.monotonic()
        fraction = self._waited_s / max(now - self._row, 1e-9)
        self._row, self._waited_s = now, 0.0
        return fraction

    def due(self) -> bool:
        """Whether a checkpoint is due; asks at most once per period."""
        now = time.monotonic()
        if now - self._checkpoint < self._every_s:
            return False
        self._checkpoint = now
        return True
