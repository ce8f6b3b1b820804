"""Documents of evaluation: one result per (benchmark, encoder, probe), and the table they fold into."""

from __future__ import annotations

from typing import ClassVar, Literal

from unic_pipe.schemas.base import Digest, Document, Model, Name
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.probes import Settings

Role = Literal["teacher", "student", "baseline", "encoder"]
"""What an evaluated encoder is to the configuration."""

CLASS_COLUMNS = (
    "benchmark", "encoder", "probe", "class", "name", "samples", "accuracy", "encoder_digest", "dataset_digest", "protocol",
)  # fmt: skip

RESULT_COLUMNS = (
    "benchmark", "encoder", "probe", "metric", "value", "seed", "encoder_digest", "dataset_digest", "protocol",
)  # fmt: skip


class ResultDefinition(Model):
    """What one probe result is made from. Its digest decides freshness."""

    protocol: str
    benchmark_train: Digest
    """Digest of the training rows and labels."""
    benchmark_test: Digest
    features_train: Digest
    """Definition digest of the encoder's features of the training set."""
    features_test: Digest
    encoder: Digest
    probe: str
    """Its name in `schemas.probes`."""
    settings: Settings
    seed: int
    """Draws the validation split (few-shot: the samples); 0 for k-NN, which draws nothing."""
    seeds: tuple[int, ...] = ()
    """All seeds, `seed` first, where there are several."""
    classes: Digest | None = None
    """Digest of which training class counts as which test class: of a test with another benchmark's probe, and where
    classes are matched by name and equal names have other numbers."""


class ClassAccuracy(Model):
    """Accuracy class by class; tuples of equal length, in the order of the dataset's class numbers."""

    classes: tuple[int, ...]
    samples: tuple[int, ...]
    accuracy: tuple[float, ...]
    names: tuple[str, ...] = ()
    """The classes' names; a number where the dataset has none. Empty in records of earlier versions."""


class Mistakes(Model):
    """Some test images that a probe got wrong, spread evenly over all of these; tuples of equal length."""

    rows: tuple[int, ...]
    """Row numbers of the test set."""
    true: tuple[str, ...]
    """Names of their classes."""
    predicted: tuple[str, ...]
    """Names of the classes that the probe (of the first seed) takes them for."""


class ResultRecord(Document):
    """`evaluations/<name>/results/<8 digits>.json`: the outcome of one probe."""

    KIND: ClassVar[str] = "result"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    benchmark: Name
    encoder: Name
    role: Role
    definition: ResultDefinition
    digest: Digest
    status: Literal["done", "failed"]
    metrics: dict[str, float]
    """For instance `top1`, `per_class`, `top1_k10`; fractions between 0 and 1. Means over the seeds (few-shot: draws)."""
    spread: dict[str, float] = {}
    """Of each metric the standard deviation over the seeds or draws, where there are several."""
    per_seed: dict[str, dict[str, float]] = {}
    """Metrics by seed or number of the draw, where there are several."""
    classes: ClassAccuracy | None = None
    """Mean over the seeds; k-NN's at k = 20 or the smallest k."""
    mistakes: Mistakes | None = None
    """Of linear probes; None in records of earlier versions."""
    chosen: dict[str, Scalar]
    """Hyper-parameters that the validation split chose, and notes such as the number of samples."""
    classifier: Digest | None = None
    """SHA-256 of the fitted probe in `probes/`, which is kept where a student learns its logits."""
    message: str = ""
    """Why it failed; of a finished result, what a reader of its scores has to know."""
