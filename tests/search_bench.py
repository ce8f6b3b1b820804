"""The fast search for the linear probe against 40 trials, on features that evaluate has extracted.

.venv/bin/python tests/search_bench.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from compare_search import Comparison, compare_search

from pipeline.cache.reader import FeatureCache
from pipeline.configuration import load_workspace
from pipeline.forward import pick_device
from pipeline.inventory import Inventory
from pipeline.probing import ProbePlan, probe_plans
from schemas.errors import UserError
from stages.evaluate.checks import check_task
from stages.evaluate.features import read_features


def bench_search(inventory: Inventory, device: str) -> tuple[ProbePlan, Comparison]:
    """Compare both searches on the first benchmark and encoder, teachers first, whose features are complete.

    Raises:
        UserError: there are none, or Optuna is not installed.
    """
    plans = sorted(probe_plans(inventory)[0], key=lambda plan: plan.role != "teacher")
    plan = next((p for p in plans if p.probe == "logistic" and _extracted(inventory, p)), None)
    if plan is None:
        raise UserError("No benchmark has features to search on.", "Run: unic-pipe evaluate")
    train, test = (
        read_features(FeatureCache(inventory.feature_folder(need)), dataset)
        for need, dataset in (plan.train, plan.test)
    )
    task, config = check_task(train, test), inventory.config.evaluate
    found = compare_search(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M,
        c_range=config.c_range, fraction=config.validation_fraction, trials=config.trials, seed=config.seeds[0],
        device=device,
    )  # fmt: skip
    return plan, found


def _extracted(inventory: Inventory, plan: ProbePlan) -> bool:
    return all(
        inventory.coverage(need, dataset.blocks)[0] == inventory.coverage(need, dataset.blocks)[1]
        for need, dataset in (plan.train, plan.test)
    )


def main() -> None:
    """Both searches on the features of a working folder's first benchmark."""
    inventory = Inventory(load_workspace(Path(sys.argv[1])))
    plan, found = bench_search(inventory, pick_device(inventory.config.compute.device))
    print(f"{plan.encoder.name} on {plan.benchmark}: {found.rows:,} training samples; seconds are (wall, CPU)")
    print(f"fast:   {found.fast_seconds}, validation {found.fast.validation_top1:.2%}, test {found.fast_test:.2%}")
    print(
        f"trials: {found.trials_seconds}, validation {found.trials.validation_top1:.2%}, test {found.trials_test:.2%}"
    )
    print(
        f"{found.speedup:.1f} × as fast. At the same C, against scikit-learn: objective {found.objective_error:+.1e}, "
        f"{found.equal_predictions:.2%} equal predictions."
    )


if __name__ == "__main__":
    main()
