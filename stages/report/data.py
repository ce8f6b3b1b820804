"""What a report shows, as plain values: filled by `gather`, or by hand; no HTML knowledge is needed.

Scores and fractions are between 0 and 1; the report prints them as per cent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.config import Scalar

Role = Literal["student", "teacher", "baseline", "encoder"]


@dataclass(frozen=True)
class BenchmarkEntry:
    """One benchmark; `note` is shown beside its name (for instance that the data are synthetic)."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class EncoderEntry:
    """An encoder that was evaluated. `baseline` names a student's architecture at random initialisation."""

    name: str
    role: Role
    baseline: str | None = None


@dataclass(frozen=True)
class Score:
    """The outcome of one probe of one encoder on one benchmark; `top1` is None when it failed."""

    benchmark: str
    encoder: str
    probe: str
    top1: float | None
    per_class: float | None = None
    """Mean of the classes' accuracies."""
    samples: int | None = None
    """Number of test images."""
    chosen: Mapping[str, Scalar] = field(default_factory=dict)
    """Hyper-parameters that the validation split chose."""
    message: str = ""
    """Why it failed."""
    digest: str = ""


@dataclass(frozen=True)
class Series:
    """One curve: epochs (fractional) and values of equal length, finite, in order."""

    epochs: tuple[float, ...]
    values: tuple[float, ...]

    def last(self, window: float = 1.0) -> float | None:
        """Mean over the last `window` epochs; None for an empty curve."""
        if not self.values:
            return None
        start = self.epochs[-1] - window
        tail = [v for e, v in zip(self.epochs, self.values, strict=True) if e > start]
        return math.fsum(tail) / len(tail)


@dataclass(frozen=True)
class StudentCurves:
    """One student's training, by the column names of `metrics.parquet` (`loss`, `val/loss`, `dino/loss`, ...)."""

    name: str
    teachers: tuple[str, ...]
    curves: Mapping[str, Series]

    def curve(self, column: str) -> Series:
        """The curve of a column; empty when it was not recorded."""
        return self.curves.get(column, Series((), ()))


@dataclass(frozen=True)
class FeatureRow:
    """One token type of one feature folder: what it holds, and what it takes on disk."""

    encoder: str
    role: Role
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
    skipped: tuple[tuple[str, str], ...] = ()
    """Benchmarks that were asked for and could not be run, and why."""
    commands: tuple[str, ...] = ()
    """What to type to make all of it again."""

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have results, the linear one first."""
        found = {s.probe for s in self.scores}
        return tuple(sorted(found, key=lambda p: (p != "logistic", p)))

    def ordered(self) -> tuple[EncoderEntry, ...]:
        """Encoders as the tables show them: students, teachers, other encoders, baselines."""
        rank = {"student": 0, "teacher": 1, "encoder": 2, "baseline": 3}
        return tuple(sorted(self.encoders, key=lambda e: rank[e.role]))

    def named(self, role: Role) -> tuple[EncoderEntry, ...]:
        """The encoders of one role, in order."""
        return tuple(e for e in self.encoders if e.role == role)
