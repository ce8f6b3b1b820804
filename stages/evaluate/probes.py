"""The probes by name: each takes a checked benchmark and gives scores, what its search chose, and remarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluations import Probe as ProbeName
from schemas.config import EvaluateConfig, Scalar
from stages.evaluate import sgd, trials
from stages.evaluate.checks import Task
from stages.evaluate.fewshot import few_shot
from stages.evaluate.knn import knn_probe
from stages.evaluate.logistic import MAX_ITERATIONS, Probe
from stages.evaluate.paths import FastProbe, Search
from stages.evaluate.scoring import ClassScores, accuracy, class_scores
from stages.evaluate.transfer import Scorer, predict_among


@dataclass(frozen=True)
class Fit:
    """A linear probe that was fitted on a training set, and what its search chose."""

    probe: Scorer
    chosen: dict[str, Scalar]
    remarks: tuple[str, ...] = ()


Fits = dict[tuple[str, int], Fit]
"""By probe and seed, all of one training set: tests with other test sets need no second fit."""


@dataclass(frozen=True)
class Setting:
    """How to run a probe: the configuration, the device, and where searches by trials keep their studies."""

    config: EvaluateConfig
    device: str
    runs: Path
    key: str
    """Of the training features; names the studies."""


@dataclass
class Outcome:
    """Scores of one probe. With several seeds, one dictionary of metrics for each."""

    per_seed: dict[int, dict[str, float]]
    chosen: dict[str, Scalar]
    remarks: tuple[str, ...] = ()
    classes: ClassScores | None = None
    """Class by class, the mean over the seeds."""
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


def _linear(name: ProbeName, task: Task, setting: Setting, fits: Fits) -> Outcome:
    """Search on the training set, refit on all of it, score the test set; for every seed of the validation split."""
    per_seed: dict[int, dict[str, float]] = {}
    chosen: dict[str, Scalar] = _sizes(task)
    remarks: dict[str, None] = {}
    each: list[ClassScores] = []
    for place, seed in enumerate(setting.config.seeds):
        if (name, seed) not in fits:
            fits[name, seed] = _FITS[name](task.train_ND, task.train_labels_N, setting, seed)
        fit = fits[name, seed]
        predicted_M = _predict(fit.probe, task)
        per_seed[seed] = accuracy(predicted_M, task.test_labels_M, task.test_classes_M)
        each.append(class_scores(predicted_M, task.test_labels_M, task.test_classes_M))
        chosen |= {k if place == 0 else f"{k}_seed{seed}": v for k, v in fit.chosen.items()}
        remarks |= dict.fromkeys(fit.remarks)
    means = np.mean([scores.accuracy for scores in each], axis=0)
    classes = ClassScores(each[0].classes, each[0].samples, tuple(means.tolist()))
    return Outcome(per_seed, chosen, tuple(remarks), classes)


def _fit_logistic(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], setting: Setting, seed: int) -> Fit:
    """Choose C and fit; only what belongs to the training set gets here."""
    config = setting.config
    if config.search == "optuna":
        file = setting.runs / f"{setting.key}-logistic-{seed}.sqlite"
        found: Search = trials.search_logistic(
            x_ND, labels_N, file, config.c_range, fraction=config.validation_fraction, trials=config.trials, seed=seed
        )
        paper = Probe(x_ND, labels_N)
        paper.fit(found.c)
        converged, probe = paper.converged, paper
        remarks = () if converged else (f"L-BFGS stopped after {MAX_ITERATIONS} iterations, before it had converged.",)
        return Fit(probe, _chosen(found, converged), remarks)
    fast = FastProbe(x_ND, labels_N, setting.device)
    found = fast.search(config.validation_fraction, seed, config.c_range, config.c_values)
    converged = fast.fit(found.c) and found.converged
    remarks = () if converged else ("Newton's iterations stopped before some fit had converged.",)
    return Fit(fast, _chosen(found, converged), remarks)


def _chosen(found: Search, converged: bool) -> dict[str, Scalar]:
    return {"c": found.c, "validation_top1": found.validation_top1, "converged": converged}


def _fit_sgd(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], setting: Setting, seed: int) -> Fit:
    """Choose (lr, wd) and train; only what belongs to the training set gets here."""
    config, device = setting.config, "cpu" if setting.device.startswith("mps") else setting.device
    fraction, epochs = config.validation_fraction, config.sgd_epochs
    if config.search == "optuna":
        file = setting.runs / f"{setting.key}-sgd-{seed}.sqlite"
        found = trials.search_sgd(
            x_ND, labels_N, file, fraction=fraction, epochs=epochs, trials=config.trials, seed=seed, device=device
        )
    else:
        found = sgd.search(x_ND, labels_N, fraction=fraction, epochs=epochs, seed=seed, device=device)
    pair, classes = (found.lr, found.wd), int(labels_N.max()) + 1
    (probe,) = sgd.train(x_ND, labels_N, [pair], classes=classes, epochs=epochs, seed=seed, device=device)
    return Fit(probe, {"lr": found.lr, "wd": found.wd, "validation_top1": found.validation_top1})


def _knn(name: ProbeName, task: Task, setting: Setting, fits: Fits) -> Outcome:
    """Score the test set by the vote of each sample's nearest training samples. Draws nothing."""
    del name, fits  # nothing is fitted
    k_values, samples = setting.config.k_values, len(task.train_ND)
    metrics, predicted_M = knn_probe(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M, k_values, setting.device
    )
    above = [str(k) for k in k_values if k > samples]
    remarks = (f"k = {', '.join(above)}: only {samples:,} training samples, so all of them vote.",) if above else ()
    classes = class_scores(predicted_M, task.test_labels_M, task.test_classes_M)
    return Outcome({0: metrics}, _sizes(task), remarks, classes)


def _fewshot(name: ProbeName, task: Task, setting: Setting, fits: Fits) -> Outcome:
    """A few samples of each class, drawn several times; a draw counts as a seed. `top1`: logistic, most shots."""
    del name, fits
    config = setting.config
    scores = few_shot(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M,
        shots=config.shots, draws=config.draws, seed=config.seeds[0], device=setting.device,
    )  # fmt: skip
    most = max(config.shots)
    short = int((np.bincount(task.train_labels_N) < most).sum())
    remarks = (f"{short} classes have fewer than {most} training samples: all of them are used.",) if short else ()
    per_draw = {i: {"top1": s[f"top1_logistic_{most}shot"], **s} for i, s in enumerate(scores)}
    return Outcome(per_draw, {**_sizes(task), "draws": config.draws, "shots": most}, remarks)


def _predict(probe: Scorer, task: Task) -> NDArray[np.int64]:
    among_C = np.arange(task.classes) if task.counts_as_C is None else task.counts_as_C
    return predict_among(probe, task.test_MD, among_C)


def _sizes(task: Task) -> dict[str, Scalar]:
    return {"train_samples": len(task.train_ND), "test_samples": len(task.test_MD), "classes": task.classes}


_FITS: dict[ProbeName, Callable[[NDArray[np.float32], NDArray[np.int64], Setting, int], Fit]] = {
    "logistic": _fit_logistic,
    "sgd": _fit_sgd,
}
_PROBES: dict[str, Callable[[ProbeName, Task, Setting, Fits], Outcome]] = {
    "logistic": _linear,
    "sgd": _linear,
    "knn": _knn,
    "fewshot": _fewshot,
}


def probe_of(name: str) -> Callable[[Task, Setting, Fits], Outcome]:
    """The probe of that name."""
    found = cast(ProbeName, name)
    return lambda task, setting, fits: _PROBES[found](found, task, setting, fits)
