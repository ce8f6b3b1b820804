"""`bench --search`: the fast search for the linear probe against 40 trials, on features that evaluate has extracted."""

from __future__ import annotations

import numpy as np

from pipeline.cache.reader import FeatureCache
from pipeline.inventory import Inventory
from pipeline.probing import Plan, evaluation_plans
from schemas.bench import SearchReport
from schemas.errors import UserError
from stages.evaluate.checks import check_task
from stages.evaluate.compare_search import compare_search
from stages.evaluate.features import read_features


def bench_search(inventory: Inventory, device: str) -> SearchReport:
    """Compare both searches on the first benchmark and encoder, teachers first, whose features are complete.

    Raises:
        UserError: there are none, or Optuna is not installed.
    """
    plans = sorted(evaluation_plans(inventory).plans, key=lambda plan: plan.role != "teacher")
    plan = next((p for p in plans if p.definition.probe == "logistic" and _extracted(inventory, p)), None)
    if plan is None:
        raise UserError("No benchmark has features to search on.", "Run: unic-pipe evaluate")
    train, test = (read_features(FeatureCache(inventory.feature_folder(need)), dataset) for need, dataset in plan.needs)
    task, config = check_task(train, test), inventory.config.evaluate
    found = compare_search(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M,
        c_range=config.c_range, fraction=config.validation_fraction, trials=config.trials, seed=config.seeds[0],
        device=device,
    )  # fmt: skip
    return SearchReport(
        benchmark=plan.benchmark,
        encoder=plan.encoder.name,
        train=len(task.train_ND),
        test=len(task.test_MD),
        dims=task.train_ND.shape[1],
        classes=len(np.unique(task.train_labels_N)),
        trials=config.trials,
        fast_seconds=found.fast_seconds,
        trials_seconds=found.trials_seconds,
        speedup=found.speedup,
        fast_validation=found.fast.validation_top1,
        trials_validation=found.trials.validation_top1,
        fast_test=found.fast_test,
        trials_test=found.trials_test,
        objective_error=found.objective_error,
        equal_predictions=found.equal_predictions,
    )


def _extracted(inventory: Inventory, plan: Plan) -> bool:
    return all(
        inventory.coverage(need, dataset.blocks)[0] == inventory.coverage(need, dataset.blocks)[1]
        for need, dataset in plan.needs
    )
