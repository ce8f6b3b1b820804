"""What the students are: a row each of the report's table, and whether the training looks as one should."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unic_pipe.pipeline.process.progress import duration
from unic_pipe.pipeline.workspace.documents import read_document
from unic_pipe.pipeline.workspace.health import finding
from unic_pipe.schemas.students import ExportManifest, StudentManifest

COLUMNS = ("Parameters", "Image size", "Steps", "Batch", "Peak rate", "Time")
NONE = "–"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch normalisation counts, and nothing learns."""


def facts(manifest: StudentManifest, folder: Path, rows: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Architecture, start and machine of a student, and then the cells under `COLUMNS`; `rows` are its metrics."""
    config, optimizer = manifest.definition.config, manifest.definition.config.optimizer
    export = read_document(folder / "export" / "manifest.json", ExportManifest)
    steps = f"{manifest.steps:,} ({optimizer.epochs} epoch{'s' if optimizer.epochs > 1 else ''})"
    rate = optimizer.lr * optimizer.batch / 256
    start = (
        "random weights" if config.init is None else config.init if isinstance(config.init, str) else "given weights"
    )
    seconds = training_seconds(rows, optimizer.batch)
    return (
        config.architecture,
        start,
        (export.machine if export is not None else None) or NONE,
        _parameters(folder / "export" / "model.safetensors"),
        f"{config.image_size}",
        steps,
        f"{optimizer.batch:,}",
        f"{rate:.2g}",
        NONE if seconds is None else duration(seconds),
    )


def warning(manifest: StudentManifest, folder: Path, rows: Sequence[Mapping[str, float]]) -> str:
    """What looks wrong in a training; empty when all is well."""
    export = read_document(folder / "export" / "manifest.json", ExportManifest)
    # The last steps have no row of their own where the steps are no multiple of `log_every`.
    done = export.step if export is not None else max((int(row["step"]) for row in rows), default=0)
    found = finding(rows, [t.name for t in manifest.definition.teachers], done, manifest.steps)
    return str(found) if found is not None else ""


def training_seconds(rows: Sequence[Mapping[str, float]], batch: int) -> float | None:
    """Seconds that the steps took, from the speeds in the metrics; None where there are none. Validation, checkpoints
    and pauses do not count."""
    seconds, before = 0.0, 0.0
    for row in rows:
        if speed := row.get("images_per_s"):
            seconds += (row["step"] - before) * batch / speed
            before = row["step"]
    return seconds or None


def _parameters(file: Path) -> str:
    try:
        with safe_open(file, "numpy") as weights:
            names = [name for name in weights.keys() if name.rpartition(".")[2] not in BUFFERS]  # noqa: SIM118
            shapes = [weights.get_slice(name).get_shape() for name in names]
    except (OSError, SafetensorError):
        return NONE
    return f"{sum(map(math.prod, shapes)) / 1e6:.1f} M"
