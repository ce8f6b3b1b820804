"""The metrics table (`metrics.parquet`) and TensorBoard's event files.

Columns: `step` (steps done), `epoch` (fractional), `lr`, `loss`, the `TIMINGS` (see `stages.distill.clock`), then for
every teacher T `T/loss`, `T/kept` and `T/{cls,patch}/KIND` of its terms; means over the steps since the row before, a
teacher's over the images that it has targets of. Of the row's own step alone: `T/{cls,patch}/spread`, and `T/gradient`, T's
share of the gradient (see `stages.distill.model.balance`), which a frozen student has not, nor a compiled one.
Rows at the end of an epoch may hold the same names under `val/`, of several datasets also under `val@DATASET/`. Absent
values are null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from unic_pipe.pipeline.cache.tables import sealed_table
from unic_pipe.pipeline.loggers import Maker, Run, Sender, close_all
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import METRICS as FILE
from unic_pipe.pipeline.workspace.documents import student_metrics
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.model.loss import TeacherLosses

TIMINGS = ("data_wait", "images_per_s", "queue", "gpu_use")
"""Columns that are different every time; `gpu_use` only where it can be known."""


def measures(losses: TeacherLosses, keep_BT: Tensor, total: Tensor) -> dict[str, Tensor]:
    """The scalars of one batch, detached, by column name; each is the mean of `losses.images(name)` images."""
    found = {"loss": total.detach()}
    loss_T, kept_T = losses.loss_BT.detach().mean(0), keep_BT.mean(0)
    for i, teacher in enumerate(losses.teachers):
        for name, mean in ((f"{teacher}/loss", loss_T[i]), (f"{teacher}/kept", kept_T[i])):
            if images := losses.images(name):
                found[name] = mean if images == len(keep_BT) else mean * (len(keep_BT) / images)
    for (teacher, token, kind), term_M in losses.terms.items():
        found[f"{teacher}/{token}/{kind}"] = term_M.detach().mean()
    return found


class Meter:
    """Running sums of the measures, kept on the device so that a step does not wait for them."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], tuple[Tensor, float]] = {}
        """Sums and total weight by the names that were added together: steps without patches have fewer."""

    @property
    def weight(self) -> float:
        """Sum of the weights of everything added."""
        return sum(weight for _, weight in self._parts.values())

    def add(self, found: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Count one batch; `weight` is 1 for a step, and the number of images for a mean over images."""
        values = torch.stack([value.float() for value in found.values()]) * weight
        names = tuple(found)
        if names in self._parts:
            sums, before = self._parts[names]
            values, weight = sums.to(values.device) + values, before + weight
        self._parts[names] = values, weight

    def means(self, prefix: str = "") -> dict[str, float]:
        """Means of everything added, by `prefix` + name; empty when nothing was. Each is over the steps that had it."""
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for names, (values, weight) in self._parts.items():
            for name, value in zip(names, values.tolist(), strict=True):
                sums[name], weights[name] = sums.get(name, 0.0) + value, weights.get(name, 0.0) + weight
        return {prefix + name: value / weights[name] for name, value in sums.items()}

    def shared(self, total: Callable[[Tensor], Tensor], size: int) -> Meter:
        """The mean of the meters of `size` processes, which have added the same names; `total` adds up tensors."""
        meter = Meter()
        for names, (sums, weight) in self._parts.items():
            weights = total(torch.tensor(weight, dtype=torch.float64))
            meter._parts[names] = total(sums) / size, float(weights) / size
        return meter

    @classmethod
    def together(cls, meters: Mapping[str, Meter], weights: Mapping[str, float] | None = None) -> Meter:
        """The meter to which everything was added that was added to any of these; with `weights`, each counts as much."""
        meter = cls()
        for which, each in meters.items():
            scale = 1.0 if weights is None else weights[which] / each.weight
            for names, (sums, weight) in each._parts.items():
                before, count = meter._parts.get(names, (torch.zeros_like(sums), 0.0))
                meter._parts[names] = before + sums * scale, count + weight * scale
        return meter

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps, so that a row after a resume is the mean of the same steps."""
        parts: list[dict[str, object]] = [
            {"names": list(names), "sums": sums, "weight": weight} for names, (sums, weight) in self._parts.items()
        ]
        first = parts[0] if parts else {"names": [], "sums": None, "weight": 0.0}
        return {**first, "more": parts[1:]} if len(parts) > 1 else first

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> Meter:
        """The meter that `state` was taken from."""
        meter = cls()
        more = state.get("more", [])
        assert isinstance(more, Sequence)
        for part in (state, *more):
            names, sums, weight = part["names"], part["sums"], part["weight"]
            assert isinstance(names, Sequence)
            assert isinstance(weight, float)
            if isinstance(sums, Tensor):
                meter._parts[tuple(names)] = sums, weight
        return meter


class MetricsLog:
    """The rows of a training, on disk whenever a checkpoint is."""

    def __init__(self, store: LocalStore, step: int) -> None:
        """Continue after `step` steps; rows of later steps are forgotten, in the table and in TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter

        self.store = store
        self.rows = [row for row in read_metrics(store) if row["step"] <= step]
        # Rows are written after their step, so the first one that may be written again is `step` + 1.
        self.board = SummaryWriter(str(store.path("tensorboard")), purge_step=step + 1)
        self.senders: list[Sender] = []

    def send_to(self, loggers: Mapping[str, Maker], run: Run, say: Callable[[str], None]) -> None:
        """Send the rows, and those to come, to other programs, too."""
        self._say = say
        self.senders = [Sender(name, make, run, self.rows, say) for name, make in loggers.items()]

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row (it must have `step`); the table reaches the disk with `flush`."""
        self.rows.append(dict(row))
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, int(row["step"]))
        for sender in self.senders:
            sender.wake()

    def flush(self, count: int | None = None) -> None:
        """Replace the table atomically, by the first `count` rows; another thread may be adding more."""
        rows = self.rows[:count]
        names = sorted({name for row in rows for name in row}, key=_column_order)
        columns = {
            name: pa.array([row.get(name) for row in rows], pa.int64() if name == "step" else pa.float64())
            for name in names
        }
        if columns:
            self.store.put(FILE, sealed_table(pa.table(columns)))
        self.board.flush()

    def close(self) -> None:
        """End TensorBoard's writer, and wait a little for the other programs."""
        self.board.close()
        if self.senders:
            close_all(self.senders, self._say)


def student_run(name: str, definition: StudentDefinition, folder: Path) -> Run:
    """What loggers are told of a training."""
    return Run("student", name, "", folder, folder.parents[1], definition.model_dump(mode="json"))


def read_metrics(store: LocalStore) -> list[dict[str, float]]:
    """The table's rows without nulls; empty when there is none. Raises DamagedError."""
    table = student_metrics(store.root)
    if table is None:
        return []
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


def _column_order(name: str) -> tuple[int, str]:
    first = ("step", "epoch", "lr", "loss", *TIMINGS, "val/loss")
    return (first.index(name), "") if name in first else (len(first), name)
