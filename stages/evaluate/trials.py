"""Hyper-parameters by trials: the paper's protocol, a study of independent fits that Optuna's TPE proposes one by one.

The study is an SQLite file: a killed search goes on after its last finished trial. The sampler is seeded anew for each
trial from (seed, trial), so a resumed study proposes what an uninterrupted one does.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.schemas.base import canonical_json
from unic_pipe.schemas.errors import DamagedError, UserError
from unic_pipe.stages.evaluate import sgd
from unic_pipe.stages.evaluate.logistic import SEARCH_TOLERANCE, Probe
from unic_pipe.stages.evaluate.paths import Search
from unic_pipe.stages.evaluate.scoring import middle_of_best, validation_split

_SEALED = "sealed"
"""Attribute of a study whose trials carry seals (older ones have none), and of a trial: its seal."""

Ranges = Mapping[str, tuple[float, float]]


def best_of_trials(
    file: Path, ranges: Ranges, score: Callable[[dict[str, float]], float], *, trials: int, seed: int
) -> tuple[dict[str, float], float, dict[int, tuple[dict[str, float], float]]]:
    """Run (or finish) a study: the best parameters (of equally good ones the middle), their score, every trial's by number.

    `ranges` are searched on a logarithmic scale; with several parameters they are modelled together.

    Raises:
        UserError: Optuna is not installed.
        DamagedError: a trial of an earlier run is not what was written.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "The search by trials (evaluate.search: optuna) needs Optuna, which is not installed.",
            "pip install '.[optuna]', or leave the default: evaluate.search: fast",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, states = _opened(file), optuna.trial.TrialState
    together = len(ranges) > 1
    for number in range(len(study.get_trials(deepcopy=False, states=(states.COMPLETE,))), trials):
        draw = int(np.random.default_rng([seed, number]).integers(2**31))
        study.sampler = optuna.samplers.TPESampler(seed=draw, multivariate=together)
        trial = study.ask()
        value = score({n: trial.suggest_float(n, low, high, log=True) for n, (low, high) in ranges.items()})
        trial.set_user_attr(_SEALED, _seal(trial.number, trial.params, value))
        study.tell(trial, value)
    done = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
    found = {tuple(t.params[name] for name in ranges): t.value for t in done}
    best = middle_of_best(found)
    return dict(zip(ranges, best, strict=True)), found[best], {i: (t.params, t.value) for i, t in enumerate(done)}


def _opened(file: Path) -> Any:
    """A new study, or one that goes on; trials that a kill cut off are over.
    Raises DamagedError: a trial of an earlier run is not what was written."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    states, again = optuna.trial.TrialState, f"Search again: rm {file}; unic-pipe evaluate"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}", study_name="probe", direction="maximize", load_if_exists=True
        )
        before = study.get_trials(deepcopy=False)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedError(f"{file}: the search's trials cannot be read ({reason}).", again) from None
    if not before:
        study.set_user_attr(_SEALED, True)
    sealed = [t for t in before if t.state == states.COMPLETE and _SEALED in study.user_attrs]
    for trial in sealed:
        if trial.user_attrs.get(_SEALED) != _seal(trial.number, trial.params, trial.value):
            raise DamagedError(f"{file}: trial {trial.number} was edited or damaged.", again)
    for trial in before:
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
    return study


def _seal(number: int, parameters: Mapping[str, float], value: float | None) -> str:
    """SHA-256 of what a trial found: a study that goes on believes only what was written."""
    return hashlib.sha256(canonical_json([number, dict(parameters), value])).hexdigest()


def search_logistic(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    file: Path,
    c_range: tuple[float, float],
    *,
    fraction: float,
    trials: int,
    seed: int,
) -> Search:
    """Choose C by independent L-BFGS fits. It is given the training set and nothing else."""
    held_N = validation_split(labels_N, fraction, seed)
    probe = Probe(x_ND[~held_N], labels_N[~held_N], SEARCH_TOLERANCE)
    held_x, held_labels = x_ND[held_N], labels_N[held_N]

    def score(parameters: dict[str, float]) -> float:
        probe.fit(parameters["c"])
        return float(np.mean(probe.predict(held_x) == held_labels))

    best, top1, done = best_of_trials(file, {"c": c_range}, score, trials=trials, seed=seed)
    return Search(best["c"], top1, True, tuple(sorted((p["c"], value) for p, value in done.values())))


def search_sgd(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    file: Path,
    *,
    fraction: float,
    epochs: int,
    trials: int,
    seed: int,
    device: str = "cpu",
) -> sgd.SgdSearch:
    """Choose (lr, wd) by independent runs of SGD. It is given the training set and nothing else."""
    held_N = validation_split(labels_N, fraction, seed)
    x, labels, classes = x_ND[~held_N], labels_N[~held_N], int(labels_N.max()) + 1
    held_x, held_labels = x_ND[held_N], labels_N[held_N]

    def score(parameters: dict[str, float]) -> float:
        pair = parameters["lr"], parameters["wd"]
        (probe,) = sgd.train(x, labels, [pair], classes=classes, epochs=epochs, seed=seed, device=device)
        return sgd.validation_top1(probe, held_x, held_labels)

    ranges = {"lr": sgd.LR_RANGE, "wd": sgd.WD_RANGE}
    best, top1, _ = best_of_trials(file, ranges, score, trials=trials, seed=seed)
    return sgd.SgdSearch(best["lr"], best["wd"], top1)
