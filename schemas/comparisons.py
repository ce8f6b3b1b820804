"""Several evaluations side by side: `unic-pipe report compare --json`."""

from __future__ import annotations

from unic_pipe.schemas.base import Model


class ComparedRun(Model):
    """One evaluation that takes part."""

    label: str
    path: str
    protocols: tuple[str, ...]


class ComparedColumn(Model):
    """One encoder of one run."""

    run: str
    encoder: str
    role: str
    """Empty when the run is a table alone, which does not say."""
    encoder_digests: tuple[str, ...]
    """One, unless results of several encoders stand under one name."""
    reference: int | None
    """Place of the column that its differences are to; None in the first run."""


class ComparedCell(Model):
    """One result, or none."""

    value: float | None
    """As stored: accuracies between 0 and 1; the mean when there are several seeds."""
    spread: float | None = None
    """Standard deviation over seeds, when there are several."""
    difference: float | None = None
    """To the reference column; None without one, and where the two cannot be compared."""
    problem: str = ""
    """Why this value cannot be compared with the row's others: made with another protocol, or on other data."""


class ComparedRow(Model):
    """One benchmark."""

    benchmark: str
    protocol: str
    dataset_digest: str
    """Of the first run that has the benchmark; other cells are measured against it."""
    cells: tuple[ComparedCell, ...]


class ComparedTable(Model):
    """One probe and metric: benchmarks x columns."""

    probe: str
    metric: str
    columns: tuple[ComparedColumn, ...]
    rows: tuple[ComparedRow, ...]
    mean: tuple[ComparedCell, ...]
    """Of accuracies, over the benchmarks that every column has and that can be compared; empty for fewer than two."""
    mean_of: int
    """The number of those benchmarks."""


class RunComparison(Model):
    """`unic-pipe report compare --json`."""

    runs: tuple[ComparedRun, ...]
    tables: tuple[ComparedTable, ...]
    comparable: bool
    """Whether no cell has a problem."""
