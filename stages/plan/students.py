"""What students will take: steps that were measured, and what of their images waits for the same cores."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from unic_pipe.pipeline.process.crew import crew_of_one
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopwatch import UNTIMED, Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.mixtures import dealt, epoch_steps
from unic_pipe.pipeline.views.rows import Rendering, views_of_rows
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.students import begun_now, student_folder
from unic_pipe.pipeline.workspace.trainable import program_versions
from unic_pipe.schemas.base import digest_of, json_digest, short
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.plans import PlanRow, StepMeasurement
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.plan.advice import HOUR_S, Job
from unic_pipe.stages.plan.kept import Kept

LOADED = 16
"""Images that are read, decoded and rendered to know what that takes."""


class Cost(Protocol):
    """What a training step costs: `stages.distill.measure.cost.StepCost`."""

    @property
    def seconds(self) -> float:
        """Seconds of a step."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint."""

    @property
    def export_bytes(self) -> int:
        """Bytes of the exported encoder."""


MEASURED = "parts of a batch at once"
"""How steps are measured: what an earlier version measured in another way is not taken."""
StepCost = Callable[..., Cost]
"""Of a definition, a device, and whether steps are `whole`."""


def student_rows(
    inventory: Inventory,
    device: str,
    step_cost: StepCost,
    jobs: Sequence[Job],
    cores: int,
    kept: Kept,
    reporter: Reporter,
) -> tuple[list[PlanRow], float]:
    """A row for every student, and the seconds of all that are not finished."""
    rows, total, known = [], 0.0, dict[str, Cost]()
    loaded = dict[int, float]()
    for name in inventory.config.students:
        label = inventory.student_name(name)
        try:
            definition = inventory.student_definition(name)
        except UnicPipeError as error:
            rows.append(PlanRow(name=f"students/{label}", stage="distill", note=error.message))
            continue
        if definition is None:
            rows.append(PlanRow(name=f"students/{label}", stage="distill", note="its samples are not indexed yet"))
            continue
        datasets, optimizer = inventory.datasets_of(name), definition.config.optimizer
        assert datasets is not None
        counts, shares = {d.manifest.name: inventory.rows_of(d) for d in datasets}, definition.config.datasets
        given, how = [shares[n] * count for n, count in counts.items()], (optimizer.batch, definition.config.streams)
        steps = optimizer.epochs * epoch_steps(given, *how)
        words = dealt(counts, shares, *how)
        finished = finished_student(label, student_folder(inventory.folder, label, definition)) is not None
        config = begun_now(definition.config, inventory.config.distill)
        definition = definition.model_copy(update={"config": config})
        whole = inventory.config.distill.compile is not False  # what may be compiled is not learned from in parts
        alike = _cost_key(definition, whole)
        if alike not in known:
            title = f"measure students/{label}{'' if words is None else f' ({words})'}"
            known[alike] = _cost(
                definition, device, alike, partial(step_cost, whole=whole), kept, partial(reporter.say, title)
            )
        cost = known[alike]
        # Rendering runs beside the training device, but on a CPU on the same cores, as far as training leaves none.
        if config.image_size not in loaded:
            loaded[config.image_size] = _loading_seconds(datasets[0], jobs, config.image_size)
        loading = optimizer.batch * loaded[config.image_size] / cores
        taken = min(definition.config.threads, cores) / cores if device == "cpu" else 0.0
        seconds = steps * max(cost.seconds, cost.seconds * taken + loading)
        size = cost.checkpoint_bytes * inventory.config.distill.keep_checkpoints + cost.export_bytes
        total += 0.0 if finished else seconds
        rows.append(
            PlanRow(
                name=f"students/{label}",
                stage="distill",
                images=sum(counts.values()),
                views=definition.views,
                bytes=size,
                bytes_left=0 if finished else size,
                files=0 if finished else 8 + len(definition.teachers) + 2 * inventory.config.distill.keep_checkpoints,
                hours=0.0 if finished else seconds / HOUR_S,
                note=f"{steps:,} steps of {cost.seconds * 1000:,.0f} ms"
                + (", not compiled" if inventory.config.distill.compile else "")
                + ("" if words is None else f"; {words}"),
            )
        )
    return rows, total


def _loading_seconds(dataset: Dataset, jobs: Sequence[Job], size: int) -> float:
    """Seconds of one core that a view takes from its file until a network can have it at this size; zero as long as no
    teacher says which views."""
    definition = next((j.need.definition for j in jobs if j.trains), None)
    if definition is None:
        return 0.0
    rows, clock = dataset.rows(), Stopwatch(("read", "decode", "render"))
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(LOADED, len(rows)), replace=False)).tolist()
    rendering = Rendering.of(definition, 0, size)
    with crew_of_one(1) as crew:
        # The first image finds nothing ready.
        views_of_rows(dataset, chosen[:1], [rendering], crew, UNTIMED)
        clock.begin()
        views_of_rows(dataset, chosen, [rendering], crew, clock)
    return sum(clock.total(piece).cpu for piece in clock.pieces()) / len(chosen)


def _cost(
    definition: StudentDefinition, device: str, key: str, step_cost: StepCost, kept: Kept, say: Callable[[], None]
) -> Cost:
    """What was measured before on this kind of device with these programs, or, after `say`, is measured now."""
    kind, versions = device.partition(":")[0], program_versions()
    file = f"measurements/student-{short(json_digest([key, kind, versions, MEASURED]))}.json"
    found = kept.find(file, StepMeasurement)
    if found is None:
        say()
        cost = step_cost(definition, device)
        found = StepMeasurement(
            student=key,
            device=kind,
            versions=versions,
            seconds=cost.seconds,
            checkpoint_bytes=cost.checkpoint_bytes,
            export_bytes=cost.export_bytes,
        )
        kept.put(file, found)
    return found


def _cost_key(definition: StudentDefinition, whole: bool) -> str:
    """Of students with one key a step costs the same: seeds, weights to start from and rates do not matter."""
    config = definition.config
    optimizer = config.optimizer.model_copy(update={"epochs": 1, "warmup_epochs": 0, "lr": 1.0, "min_lr": 0.0})
    changes = {"seed": 0, "order_seed": None, "seeds": None, "init": None, "optimizer": optimizer}
    key = digest_of(definition.model_copy(update={"config": config.model_copy(update=changes)}))
    return json_digest([key, "whole"]) if whole else key
