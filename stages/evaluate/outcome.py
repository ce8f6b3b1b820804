"""What every probe is given beside its task, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.config import EvaluateConfig, Scalar
from unic_pipe.schemas.evaluations import ClassAccuracy, Mistakes
from unic_pipe.schemas.probes import PROBES


@dataclass(frozen=True)
class Setting:
    """How to run a probe: the configuration, the device, and where searches by trials keep their studies."""

    config: EvaluateConfig
    device: str
    runs: Path
    stop: Stop = field(default_factory=Stop)
    key: str = ""
    """Of the training features; names the studies."""
    fits: dict[tuple[str, int], Any] = field(default_factory=dict)
    """By probe and seed, what was fitted on these training features: tests with other test sets need no second fit."""


@dataclass
class Outcome:
    """Scores of one probe. With several seeds, one dictionary of metrics for each."""

    per_seed: dict[int, dict[str, float]]
    chosen: dict[str, Scalar]
    """What a search chose, and notes such as the number of samples."""
    remarks: tuple[str, ...] = ()
    """What a reader of the scores has to know, a sentence each."""
    classes: ClassAccuracy | None = None
    """Class by class, the mean over the seeds."""
    mistakes: Mistakes | None = None
    classifier: Callable[[], NDArray[np.float64]] | None = None
    """Of a linear probe of raw features (its first seed's): gives weights and, in a last column, biases, (C, D + 1)."""
    metrics: dict[str, float] = field(init=False)
    """Means over the seeds."""
    spread: dict[str, float] = field(init=False)
    """Standard deviations over the seeds (n - 1); empty for a single one."""

    def __post_init__(self) -> None:
        table = {
            m: np.array([scores[m] for scores in self.per_seed.values()]) for m in next(iter(self.per_seed.values()))
        }
        self.metrics = {metric: float(values.mean()) for metric, values in table.items()}
        several = len(self.per_seed) > 1
        self.spread = {m: float(values.std(ddof=1)) for m, values in table.items()} if several else {}


def code_of(probe: str) -> Callable[[Any, Setting], Outcome | None]:
    """The function of a probe of the registry: its task and the setting in, scores out; None after a stop."""
    module, _, name = PROBES[probe].run.partition(":")
    found: Callable[[Any, Setting], Outcome | None] = getattr(import_module(module, __package__), name)
    return found
