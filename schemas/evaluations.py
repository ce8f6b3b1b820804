"""Documents of evaluation: one result per (benchmark, encoder, probe), and the table they fold into."""

from __future__ import annotations

from typing import ClassVar, Literal

from schemas.base import Digest, Document, Model, Name
from schemas.config import Scalar

PROTOCOL = "logistic-knn/1"
"""Version of the evaluation protocol; results of different versions are never compared."""

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
    probe: Literal["logistic", "sgd", "knn", "zero-shot", "segmentation", "in-context", "depth"]
    settings: dict[str, tuple[float, ...] | float | int]
    seed: int
    classes: Digest | None = None
    """Of a test with another benchmark's probe: digest of which training class counts as which test class."""


class ResultRecord(Document):
    """`evaluations/<name>/results/<8 digits>.json`: the outcome of one probe."""

    KIND: ClassVar[str] = "result"

    benchmark: Name
    encoder: Name
    role: Literal["teacher", "student", "baseline", "encoder"]
    definition: ResultDefinition
    digest: Digest
    status: Literal["done", "failed"]
    metrics: dict[str, float]
    """For instance `top1`, `per_class`, `top1_k10`; fractions between 0 and 1."""
    chosen: dict[str, Scalar]
    """Hyper-parameters that the validation split chose, and notes such as the number of samples."""
    message: str = ""
    """Why it failed; of a finished result, what a reader of its scores has to know."""
