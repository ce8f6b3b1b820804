"""What machines read: the object that each command prints on stdout with `--json`. A new field may come, none changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unic_pipe.schemas.base import Model
from unic_pipe.schemas.bench import BenchReport
from unic_pipe.schemas.comparisons import RunComparison
from unic_pipe.schemas.garbage import GarbageReport
from unic_pipe.schemas.plans import PlanReport
from unic_pipe.schemas.precision import TeacherPrecision
from unic_pipe.schemas.status import CacheReport, StatusReport, VerifyReport


class TeacherRow(Model):
    """A teacher, configured or known by name. From `image_size` on, what is known once its weights are here."""

    name: str
    architecture: str
    """timm's name."""
    source: str
    """Where the weights come from."""
    licence: str
    """Of the weights."""
    path: str | None
    """The weights file here."""
    digest: str | None
    """SHA-256 of the weights, where they are here."""
    problem: str | None
    """Why it cannot be used yet."""
    yaml: str
    """The line under `teachers:`."""
    configured: bool
    image_size: int = 0
    mean: list[float] = []
    std: list[float] = []
    normalisation: str = ""
    """Where mean and std are from."""
    grid: list[int] = []
    """Rows and columns of patch tokens."""
    readout: str = ""
    pooling: str = ""
    """What its cls token is."""
    section: str | None = None
    """The part of the file that was read."""
    beside: list[str] = []
    """Other sections of the file."""


class TeachersReport(Model):
    """`unic-pipe teachers --json`."""

    teachers: tuple[TeacherRow, ...]
    measured: tuple[TeacherPrecision, ...] = ()
    """With `--measure`."""


class BenchmarkRow(Model):
    """A benchmark that has a name."""

    name: str
    title: str
    kind: str
    axis: str
    metric: str
    """The main one."""
    classifier: str
    """Its probe."""
    train: int | None
    """Images; none for transfer."""
    test: int
    classes: int | None
    splits: str
    paper: str
    source: str
    """Page of the data."""
    licence: str
    note: str
    get: str
    """What to download, and how it is laid out."""
    download: bool
    """Whether `--download` can."""
    configured: bool
    datasets: list[str]
    """Own datasets that are read instead of its folder."""
    here: bool
    folder: str | None
    missing: dict[str, list[str]]
    """By split."""
    searched: str
    """The folder in which it was looked for."""


class BenchmarksReport(Model):
    """`unic-pipe benchmarks --json`."""

    benchmarks: tuple[BenchmarkRow, ...]


class CheckRow(Model):
    """One finding of `doctor`."""

    name: str
    ok: bool
    finding: str
    advice: str
    """What to do when it is not well."""


class DoctorReport(Model):
    """`unic-pipe doctor --json`."""

    checks: tuple[CheckRow, ...]
    ok: bool


class ConfigReport(Model):
    """`unic-pipe config --json`: `config`, or with `--describe` `fields`."""

    config: Any = None
    """The configuration in force, or the field that was named."""
    fields: list[dict[str, Any]] = []
    """`place`, `kind`, `default`, `meaning`, `source` and `parent` (whether it has fields of its own) of each."""


class WrittenReport(Model):
    """What a command wrote that no manifest tells of."""

    paths: tuple[str, ...]
    """Files or folders, absolute, and addresses."""
    remarks: tuple[str, ...] = ()
    """What else was said."""


STAGES = ("index", "extract", "distill", "evaluate", "run", "demo")
PRINTED: Mapping[str, type[Model]] = {
    "status": StatusReport,
    **dict.fromkeys(STAGES, StatusReport),
    "plan": PlanReport,
    "verify": VerifyReport,
    "gc": GarbageReport,
    "teachers": TeachersReport,
    "benchmarks": BenchmarksReport,
    "doctor": DoctorReport,
    "config": ConfigReport,
    "bench": BenchReport,
    "report compare": RunComparison,
    "report cache": CacheReport,
    **dict.fromkeys(("init", "embed", "import", "export", "pack"), WrittenReport),
}
"""By command."""
