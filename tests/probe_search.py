"""The fast search for the linear probe against the trial-by-trial protocol, on the same features in the same run.

`python tests/probe_search.py FOLDER` compares them on features that `unic-pipe evaluate` has extracted in a working folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.stages.evaluate.checks import check_task
from unic_pipe.stages.evaluate.features import read_features
from unic_pipe.stages.evaluate.linear import Linear, matrix_of
from unic_pipe.stages.evaluate.logistic import Probe
from unic_pipe.stages.evaluate.paths import FastProbe, Search
from unic_pipe.stages.evaluate.trials import search_logistic

R = TypeVar("R")


@dataclass(frozen=True)
class Comparison:
    """What both searches chose and cost. Accuracies are fractions; seconds are (wall, CPU) of this process."""

    rows: int
    """Training samples, validation included."""
    fast: Search
    trials: Search
    fast_seconds: tuple[float, float]
    trials_seconds: tuple[float, float]
    fast_test: float
    """Top-1 on the test set of the fit of all training samples with the C that the fast search chose."""
    trials_test: float
    objective_error: float
    """(fast - scikit-learn's) / scikit-learn's objective at the same C, both on all training samples."""
    equal_predictions: float
    """Fraction of test samples on which these two fits agree."""

    @property
    def speedup(self) -> float:
        """Wall seconds of the trials per wall second of the fast search."""
        return self.trials_seconds[0] / self.fast_seconds[0]


def compare_search(
    train_ND: NDArray[np.float32],
    train_labels_N: NDArray[np.int64],
    test_MD: NDArray[np.float32],
    test_labels_M: NDArray[np.int64],
    *,
    c_range: tuple[float, float] = (1e-5, 1e6),
    fraction: float = 0.2,
    trials: int = 40,
    seed: int = 0,
    device: str = "cpu",
) -> Comparison:
    """Run both searches over `c_range` with one validation split, and the final fits; labels are 0 to C - 1.

    The fast search's seconds include preparing the features; neither's include the final fit.

    Raises:
        UserError: Optuna is not installed.
    """
    fast, found, fast_seconds = _fast(train_ND, train_labels_N, fraction, seed, c_range, device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.sqlite"
        paper, trials_seconds = _timed(
            lambda: search_logistic(
                train_ND, train_labels_N, file, c_range, fraction=fraction, trials=trials, seed=seed
            )
        )
    fast.fit(found.c)
    tight = Probe(train_ND, train_labels_N, tolerance=1e-7, iterations=100_000)
    tight.fit(found.c)
    ours, theirs = (_objective(p, train_ND, train_labels_N, found.c) for p in (fast, tight))
    predicted_M = fast.predict(test_MD)
    equal = float(np.mean(tight.predict(test_MD) == predicted_M))
    other = Probe(train_ND, train_labels_N)
    other.fit(paper.c)
    return Comparison(
        rows=len(train_ND),
        fast=found,
        trials=paper,
        fast_seconds=fast_seconds,
        trials_seconds=trials_seconds,
        fast_test=float(np.mean(predicted_M == test_labels_M)),
        trials_test=float(np.mean(other.predict(test_MD) == test_labels_M)),
        objective_error=(ours - theirs) / theirs,
        equal_predictions=equal,
    )


def _fast(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    fraction: float,
    seed: int,
    c_range: tuple[float, float],
    device: str,
) -> tuple[FastProbe, Search, tuple[float, float]]:
    def work() -> tuple[FastProbe, Search]:
        probe = FastProbe(x_ND, labels_N, device)
        return probe, probe.search(fraction, seed, c_range)

    (probe, found), seconds = _timed(work)
    return probe, found, seconds


def _timed(work: Callable[[], R]) -> tuple[R, tuple[float, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def _objective(probe: Linear, x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], c: float) -> float:
    """scikit-learn's multinomial objective divided by C * N, in float64, of weights that sum to 0 over the classes."""
    matrix_KE = matrix_of(probe, x_ND.shape[1])
    weights_KD = matrix_KE[:, :-1] - matrix_KE[:, :-1].mean(axis=0)
    logits_NK = x_ND.astype(np.float64) @ weights_KD.T + matrix_KE[:, -1]
    top_N1 = logits_NK.max(axis=1, keepdims=True)
    sums_N = np.log(np.exp(logits_NK - top_N1).sum(axis=1)) + top_N1[:, 0]
    loss = float(np.mean(sums_N - logits_NK[np.arange(len(x_ND)), labels_N]))
    return loss + float(np.square(weights_KD).sum()) / (2 * c * len(x_ND))


def compared(inventory: Inventory) -> tuple[str, Comparison]:
    """Both searches on the first benchmark and teacher whose features are complete, and what these are.

    Raises:
        StopIteration: there are none.
    """
    plan = next(
        p for p in evaluation_plans(inventory).plans if p.role == "teacher" and p.definition.probe == "logistic"
    )
    sides = [read_features(FeatureCache(inventory.feature_folder(need)), dataset) for need, dataset in plan.needs]
    task, config = check_task(*sides), inventory.config.evaluate
    found = compare_search(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M,
        c_range=config.c_range, fraction=config.validation_fraction, trials=config.trials, seed=config.seeds[0],
    )  # fmt: skip
    return f"{plan.encoder.name} on {plan.benchmark}: {task.train_ND.shape}", found


if __name__ == "__main__":
    title, found = compared(Inventory(load_workspace(Path(sys.argv[1]))))
    print(title)
    for name, seconds, search, test in (
        ("trials", found.trials_seconds, found.trials, found.trials_test),
        ("fast", found.fast_seconds, found.fast, found.fast_test),
    ):
        wall, cpu = seconds
        print(f"{name}: {wall:.1f} s wall, {cpu:.1f} s CPU, validation {search.validation_top1:.2%}, test {test:.2%}")
    print(
        f"{found.speedup:.1f} x as fast; at the same C, against scikit-learn: objective {found.objective_error:+.1e}, "
        f"{found.equal_predictions:.2%} equal predictions"
    )
