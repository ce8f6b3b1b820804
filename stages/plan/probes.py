"""What evaluations still need: features of encoders, of students that are to come as well, and probes."""

from unic_pipe.pipeline.cache.needs import FeatureNeed, merge_needs
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import evaluation_path, unfinished
from unic_pipe.schemas.errors import UnicPipeError


def probe_work(inventory: Inventory) -> tuple[list[tuple[FeatureNeed, ResolvedEncoder]], int]:
    """Features that probes read, and how many probes have no result yet.

    A student that is not finished as it is configured now is planned as its architecture with random weights; the one of
    before, whose name it will take, counts for nothing. Raises UnicPipeError: as `evaluation_plans`.
    """
    planned, coming = evaluation_plans(inventory), _coming(inventory)
    labels = {inventory.student_name(name) for name in coming}
    plans = [p for p in planned.plans if p.role != "student" or p.encoder.name not in labels]
    needs = [(need, p.encoder) for p in plans for need, _ in p.needs]
    for name in coming:
        stand_in = inventory.baseline(name, inventory.config.students[name])
        for dataset in {n for b in inventory.config.evaluate.benchmarks.values() for n in (b.train, b.test)}:
            found = inventory.dataset(dataset).dataset
            if found is not None:
                need = inventory.probe_need(found, stand_in)
                needs.append((FeatureNeed(need.dataset, name, need.definition, need.views), stand_in))
    encoders = {need.encoder: encoder for need, encoder in needs}
    merged = [(need, encoders[need.encoder]) for need in merge_needs([need for need, _ in needs])]
    folder = evaluation_path(inventory)
    todo = plans if folder is None else unfinished(folder, plans)
    return merged, len(todo) + len(planned.plans) - len(plans) + sum(planned.waiting.values())


def _coming(inventory: Inventory) -> list[str]:
    """Configured students that are not trained to the end as they are configured."""
    found = []
    for name in inventory.config.students:
        try:
            inventory.finished(name, f"Student {name}")
        except UnicPipeError:
            found.append(name)
    return found
