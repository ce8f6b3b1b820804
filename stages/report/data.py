"""What a report shows, as plain values: filled by `gather`, or by hand; no HTML knowledge is needed.

Scores are as they were measured: accuracies and mIoU between 0 and 1, depth errors in metres (`metrics` says how each
is printed, and which of two is better).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from unic_pipe.pipeline.workspace.seeds import SeedGroup
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.evaluations import Role
from unic_pipe.schemas.probes import PROBES


@dataclass(frozen=True)
class BenchmarkEntry:
    """One benchmark; `note` is shown beside its name (for instance that the data are synthetic)."""

    name: str
    note: str = ""
    axis: str = ""
    """The group of benchmarks that it belongs to, such as `fine-grained`; empty when it has none."""


@dataclass(frozen=True)
class EncoderEntry:
    """An encoder that was evaluated. `baseline` names a student's architecture at random initialisation."""

    name: str
    role: Role
    baseline: str | None = None
    parameters: int = 0
    """Of its network; 0 where that is not known."""
    speed: float = 0.0
    """Images a second of forward passes; 0 where that was not measured."""


@dataclass(frozen=True)
class Score:
    """The outcome of one probe of one encoder on one benchmark; `value` is None when it failed."""

    benchmark: str
    encoder: str
    probe: str
    value: float | None
    per_class: float | None = None
    """Mean of the classes' accuracies."""
    samples: int | None = None
    """Number of test images."""
    chosen: Mapping[str, Scalar] = field(default_factory=dict)
    """Hyper-parameters that the validation split chose."""
    message: str = ""
    """Why it failed."""
    digest: str = ""
    metric: str = "top1"
    """What `value` measures: a name in `metrics.METRICS`."""
    spread: float | None = None
    """Standard deviation over seeds, in units of `value`; None when there was one seed."""
    seeds: int = 1
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """Values over a setting that is not chosen, by name: pairs (k, top-1) of `k`; of few-shot classifiers, by theirs,
    pairs (training images per class, top-1)."""
    classes: tuple[tuple[int, int, float], ...] = ()
    """Class by class: the dataset's number, test images, accuracy."""
    class_names: tuple[str, ...] = ()
    """Their names; empty where results of an earlier version have none."""
    encoder_digest: str = ""
    dataset_digest: str = ""


@dataclass(frozen=True)
class Skipped:
    """Something that was asked for and has no result, and why: a benchmark without data, a student that is not finished."""

    name: str
    reason: str


@dataclass(frozen=True)
class Series:
    """One curve: epochs (fractional) and values of equal length, finite, in order."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]

    def last(self) -> float | None:
        """Mean over the last epoch; None for an empty curve."""
        if not self.values:
            return None
        tail = [v for e, v in zip(self.epochs, self.values, strict=True) if e > self.epochs[-1] - 1]
        return math.fsum(tail) / len(tail)


@dataclass(frozen=True)
class StudentCurves:
    """One student's training, by the column names of `metrics.parquet` (`loss`, `val/loss`, `dino/loss`, ...)."""

    name: str
    teachers: tuple[str, ...]
    curves: Mapping[str, Series]
    facts: tuple[str, ...] = ()
    """What the student is, see `stages.report.trainings`."""
    warning: str = ""
    """What looks wrong in its training."""

    def curve(self, column: str) -> Series:
        """The curve of a column; empty when it was not recorded."""
        return self.curves.get(column, Series((), ()))


@dataclass(frozen=True)
class FeatureRow:
    """One token type of one feature folder: what it holds, and what it takes on disk."""

    encoder: str
    dataset: str
    architecture: str
    image_size: int
    token: str
    dim: int
    grid: tuple[int, int]
    codec: str
    size: int
    """Bytes of the shard files on disk."""
    values: int
    """Stored numbers: rows x tokens x dimensions x views."""
    views: int
    rows: int
    """Rows of one view."""
    bad_rows: int
    """Rows that are not usable in at least one view."""
    training: bool
    """Whether a student was distilled from it; otherwise it only serves benchmarks."""
    digest: str

    @property
    def bits_per_value(self) -> float | None:
        """Bits on disk per stored number."""
        return 8 * self.size / self.values if self.values else None


@dataclass(frozen=True)
class Origin:
    """Something that the results rest on, by its digest (64 hexadecimal digits)."""

    kind: str
    name: str
    digest: str


@dataclass(frozen=True)
class Picture:
    """A small PNG, in base64, and what it shows in words."""

    png: str
    alt: str


@dataclass(frozen=True)
class PictureRow:
    """The shown images themselves, or an encoder's patch tokens of them."""

    name: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """The same images of a dataset in every row; the first row has the images."""

    dataset: str
    rows: tuple[PictureRow, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows."""

    title: str
    benchmarks: tuple[BenchmarkEntry, ...] = ()
    encoders: tuple[EncoderEntry, ...] = ()
    scores: tuple[Score, ...] = ()
    training: tuple[StudentCurves, ...] = ()
    features: tuple[FeatureRow, ...] = ()
    origins: tuple[Origin, ...] = ()
    protocol: str = ""
    commands: tuple[str, ...] = ()
    """What to type to make all of it again."""
    skipped: tuple[Skipped, ...] = ()
    seed_groups: tuple[SeedGroup, ...] = ()
    """Students that differ in their training seed alone."""
    pictures: Pictures | None = None
    """Patch tokens as colours, where there are any."""
    speed_device: str = ""
    """Where speeds were measured: `cpu` (one core), `cuda` …; empty where none was."""
    mistakes: tuple[PictureRow, ...] = ()
    """By benchmark, test images that the first student's linear probe takes for another class."""

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have results, the linear one first."""
        found, linear = {s.probe for s in self.scores}, ["linear", *(n for n, p in PROBES.items() if p.linear)]
        return tuple(sorted(found, key=lambda p: (linear.index(p) if p in linear else len(linear), p)))

    def ordered(self) -> tuple[EncoderEntry, ...]:
        """Encoders as the tables show them: students, teachers, other encoders, baselines."""
        rank = {"student": 0, "teacher": 1, "encoder": 2, "baseline": 3}
        return tuple(sorted(self.encoders, key=lambda e: rank[e.role]))

    def named(self, role: Role) -> tuple[EncoderEntry, ...]:
        """The encoders of one role, in order."""
        return tuple(e for e in self.encoders if e.role == role)
