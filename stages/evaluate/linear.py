"""The linear probes: hyper-parameters chosen on the training set, fitted on all of it, scored on the test set.

Shapes: N training samples, M test samples, D dimensions, C classes of the probe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.classes import named
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.evaluations import ClassAccuracy, Mistakes
from unic_pipe.stages.evaluate import sgd as sgd_fit
from unic_pipe.stages.evaluate import trials
from unic_pipe.stages.evaluate.checks import Task
from unic_pipe.stages.evaluate.logistic import MAX_ITERATIONS, Probe
from unic_pipe.stages.evaluate.outcome import Outcome, Setting
from unic_pipe.stages.evaluate.paths import FastProbe, Search
from unic_pipe.stages.evaluate.scoring import accuracy, class_scores, without_validation

_ROWS = 4096
"""Test samples at a time, so that the logits of 1,000 classes stay small."""
_MISTAKES = 8
"""Wrong predictions that a result tells one by one."""


Linear = Probe | FastProbe | sgd_fit.SgdProbe
"""A fitted probe; `scores` gives its logits (M, C), up to a constant for each sample."""


@dataclass(frozen=True)
class Fit:
    """A linear probe that was fitted on a training set, and what its search chose."""

    probe: Linear
    chosen: dict[str, Scalar]
    remarks: tuple[str, ...] = ()


def logistic(task: Task, setting: Setting) -> Outcome:
    """Logistic regression on raw features."""
    outcome = _linear("logistic", fit_logistic, task, setting)
    first: Fit = setting.fits["logistic", setting.config.seeds[0]]
    outcome.classifier = partial(matrix_of, first.probe, task.train_ND.shape[1])
    return outcome


def matrix_of(probe: Linear, dims: int) -> NDArray[np.float64]:
    """Weights and, in a last column, biases of a probe of raw features, (C, D + 1): what it makes of 0 and of the axes."""
    scores = probe.scores(np.eye(1 + dims, dims, -1, dtype=np.float32))
    return np.column_stack([(scores[1:] - scores[0]).T, scores[0]])


def sgd(task: Task, setting: Setting) -> Outcome:
    """Softmax regression by SGD on L2-normalised features."""
    return _linear("sgd", fit_sgd, task, setting)


def predict_among(probe: Linear, x_MD: NDArray[np.float32], counts_as_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """The test class (M,) of the likeliest class among those that are asked (`counts_as_C` >= 0)."""
    asked = np.flatnonzero(counts_as_C >= 0)
    predicted = [
        counts_as_C[asked[probe.scores(x_MD[at : at + _ROWS])[:, asked].argmax(axis=1)]]
        for at in range(0, len(x_MD), _ROWS)
    ]
    return np.concatenate(predicted)


def _linear(
    name: str,
    fit_on: Callable[[NDArray[np.float32], NDArray[np.int64], Setting, int], Fit],
    task: Task,
    setting: Setting,
) -> Outcome:
    """Search on the training set, refit on all of it, score the test set; for every seed of the validation split."""
    per_seed: dict[int, dict[str, float]] = {}
    chosen: dict[str, Scalar] = task.sizes
    remarks = dict.fromkeys(without_validation(task.train_labels_N, task.train_names))
    each: list[ClassAccuracy] = []
    wrong: Mistakes | None = None
    for place, seed in enumerate(setting.config.seeds):
        if (name, seed) not in setting.fits:
            setting.fits[name, seed] = fit_on(task.train_ND, task.train_labels_N, setting, seed)
        fit: Fit = setting.fits[name, seed]
        predicted_M = _predict(fit.probe, task)
        per_seed[seed] = accuracy(predicted_M, task.test_labels_M, task.test_classes_M)
        each.append(class_scores(predicted_M, task.test_labels_M, task.test_classes_M, task.test_names))
        wrong = wrong if place else mistakes(predicted_M, task)
        chosen |= {k if place == 0 else f"{k}_seed{seed}": v for k, v in fit.chosen.items()}
        remarks |= dict.fromkeys(fit.remarks)
    means = np.mean([scores.accuracy for scores in each], axis=0)
    classes = each[0].model_copy(update={"accuracy": tuple(means.tolist())})
    return Outcome(per_seed, chosen, tuple(remarks), classes, wrong)


def mistakes(predicted_M: NDArray[np.int64], task: Task) -> Mistakes | None:
    """At most `_MISTAKES` of the test samples that were taken for another class, evenly over all of them.

    None where it is not known which images they are.
    """
    if task.test_rows_M is None:
        return None
    wrong = np.flatnonzero(predicted_M != task.test_labels_M)
    shown = wrong[np.linspace(0, len(wrong) - 1, min(_MISTAKES, len(wrong))).round().astype(np.int64)]
    names = task.train_names if task.counts_as_C is None else task.test_names
    return Mistakes(
        rows=tuple(task.test_rows_M[shown].tolist()),
        true=named(task.test_names, task.test_classes_M[shown].tolist()),
        predicted=named(names, predicted_M[shown].tolist()),
    )


def fit_logistic(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], setting: Setting, seed: int) -> Fit:
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


def fit_sgd(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], setting: Setting, seed: int) -> Fit:
    """Choose (lr, wd) and train; only what belongs to the training set gets here."""
    config, device = setting.config, "cpu" if setting.device.startswith("mps") else setting.device
    fraction, epochs = config.validation_fraction, config.sgd_epochs
    if config.search == "optuna":
        file = setting.runs / f"{setting.key}-sgd-{seed}.sqlite"
        found = trials.search_sgd(
            x_ND, labels_N, file, fraction=fraction, epochs=epochs, trials=config.trials, seed=seed, device=device
        )
    else:
        found = sgd_fit.search(x_ND, labels_N, fraction=fraction, epochs=epochs, seed=seed, device=device)
    pair, classes = (found.lr, found.wd), int(labels_N.max()) + 1
    (probe,) = sgd_fit.train(x_ND, labels_N, [pair], classes=classes, epochs=epochs, seed=seed, device=device)
    return Fit(probe, {"lr": found.lr, "wd": found.wd, "validation_top1": found.validation_top1})


def _predict(probe: Linear, task: Task) -> NDArray[np.int64]:
    among_C = np.arange(task.classes) if task.counts_as_C is None else task.counts_as_C
    return predict_among(probe, task.test_MD, among_C)
