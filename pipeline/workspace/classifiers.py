"""Whose logits a student learns: the classifier of a teacher's weights, or the linear probe of it that `evaluate` fitted.

`evaluate` keeps the probes that some student names (`loss.classifier: probe:BENCHMARK`) beside their results. Only `logistic`
is a matrix over cls as it is cached; `sgd` scales vectors to length 1 before. All are (C, D + 1) float64: weights of C
classes, and biases in the last column.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.workspace.evaluation_plans import KEPT, evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import EVALUATION, FOLDER, current_record, probe_key, probes_of
from unic_pipe.schemas.errors import NotFinishedError, UserError
from unic_pipe.schemas.losses import LossConfig


def classifier_of(inventory: Inventory, loss: LossConfig) -> Callable[[str], Doubles] | None:
    """What gives a teacher's classifier for a loss about logits; None for others. It raises UserError: there is none."""
    if not loss.needs_logits:
        return None
    if loss.probed is not None:
        benchmark = loss.probed
        return lambda teacher: kept_probe(inventory, benchmark, teacher)

    def of_weights(teacher: str) -> Doubles:
        from unic_pipe.pipeline.encoders.classifier import read_classifier

        return read_classifier(inventory.teacher(teacher))

    return of_weights


def kept_probe(inventory: Inventory, benchmark: str, teacher: str) -> Doubles:
    """The probe of a teacher that was fitted on a benchmark, in any evaluation of the working folder.

    Raises:
        UserError: there is none that is as it was fitted.
    """
    plans = [
        p for p in evaluation_plans(inventory).plans if p.kept and (p.benchmark, p.encoder.name) == (benchmark, teacher)
    ]
    for plan in plans:
        for folder in sorted((inventory.folder / FOLDER).glob("*-????????")):
            record = current_record(folder, benchmark, teacher, plan.definition, kept=True)
            if record is not None and record.status == "done":
                found: Doubles = np.load(folder / probe_key(benchmark, teacher, plan.definition), allow_pickle=False)
                return found
    message = f"Teacher {teacher} has no {KEPT} probe that was fitted on benchmark {benchmark}."
    config = inventory.config.evaluate
    if benchmark in config.benchmarks and KEPT in probes_of(config, benchmark):
        raise NotFinishedError(message, "unic-pipe evaluate", EVALUATION)
    hint = (
        f"Name it under evaluate.benchmarks, with {KEPT} among evaluate.probes; benchmarks of the registry have others."
    )
    raise UserError(message, hint)


def require_probes(inventory: Inventory, student: str) -> None:
    """Look for the probes whose logits a student learns.

    Raises:
        NotFinishedError: `evaluate` has one to fit first.
        UserError: there is none to be had.
    """
    benchmark = inventory.config.students[student].loss.probed
    if benchmark is not None:
        for teacher in inventory.config.teachers_of(student):
            kept_probe(inventory, benchmark, teacher)
