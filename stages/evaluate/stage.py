"""The evaluate stage as a command runs it: features of every benchmark through the cache, then the probes.

Test images that were trained on are found by the content hashes of the index, and said with the score.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from unic_pipe.pipeline.cache.needs import FeatureNeed, merge_needs
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.run import ExtractOptions, ExtractPass, extract_features
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.freshness import NOT_INDEXED
from unic_pipe.pipeline.workspace.evaluation_plans import benchmark_pairs, evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import evaluates, evaluation_path
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.stages.evaluate.overlap import Overlaps
from unic_pipe.stages.evaluate.run import Job, evaluate
from unic_pipe.stages.evaluate.tasks import Kept, loader_of


def evaluate_all(inventory: Inventory, options: ExtractOptions, reporter: Reporter, stop: Stop) -> list[ResultRecord]:
    """Probe every finished student, every teacher and the baselines on every benchmark; skips what is fresh.

    Benchmarks whose datasets are not indexed, not what their names promise, without labels or of other classes are left
    out, which is said.

    Raises:
        UserError: no benchmark (or none that can be run), missing weights.
        StageError: features could not be extracted.
    """
    if not evaluates(inventory):
        raise UserError(
            "Nothing to evaluate: no benchmark is configured.",
            "Name a labelled dataset pair: evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
        )
    found = evaluation_plans(inventory)
    for name, why in found.skipped.items():
        reporter.say(f"evaluate: {name} is skipped: {why}")
    folder = evaluation_path(inventory)
    if folder is None or not (found.plans or benchmark_pairs(inventory)[0]):
        raise _nothing_usable(inventory, found.skipped)
    for name in found.waiting:
        reporter.say(f"evaluate: {name} is not finished, so it is left out for now (unic-pipe distill)")
    needed = [(need, dataset, plan.encoder) for plan in found.plans for need, dataset in plan.needs]
    _extract(inventory, needed, options, reporter, stop)
    if stop.requested:
        return []
    kept, overlaps = Kept(), Overlaps(inventory)
    jobs = [
        Job(
            p.benchmark, p.encoder.name, p.role, p.definition, loader_of(inventory, p, kept), p.note,
            partial(overlaps.remarks, p), p.kept,
        )
        for p in found.plans
    ]  # fmt: skip
    config, device = inventory.config.evaluate, pick_device(options.device)
    return evaluate(inventory.folder, folder, jobs, config, reporter, stop, device)


def skipped_error(inventory: Inventory) -> StageError | None:
    """One error for all benchmarks that were left out, or None; the results of the others are kept either way."""
    skipped = evaluation_plans(inventory).skipped
    if not skipped:
        return None
    name, why = next(iter(skipped.items()))
    return StageError(
        f"{len(skipped)} of {_benchmarks(inventory)} benchmarks were skipped; the first, {name}: {why}",
        "The others' results are kept. What each one needs: unic-pipe benchmarks",
    )


def _nothing_usable(inventory: Inventory, skipped: Mapping[str, str]) -> UserError:
    refused = next(iter(inventory.refused.values()), None)
    if refused is not None:
        return refused
    name, why = next(iter(skipped.items()))
    hint = (
        "unic-pipe index"
        if why == NOT_INDEXED
        else "Mend this in unic-pipe.yaml or in the data, and run again: unic-pipe evaluate"
    )
    return UserError(f"Nothing to evaluate: no benchmark can be run; the first, {name}: {why}", hint)


def _benchmarks(inventory: Inventory) -> int:
    config = inventory.config.evaluate
    return len(config.benchmarks) + len(config.zero_shot) + len(config.dense)


def _extract(
    inventory: Inventory,
    needed: Sequence[tuple[FeatureNeed, Dataset, ResolvedEncoder]],
    options: ExtractOptions,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Extract the missing features, one pass per dataset for all encoders together."""
    wanted: dict[str, dict[str, tuple[FeatureNeed, ResolvedEncoder]]] = {}
    datasets: dict[str, Dataset] = {}
    encoders = {need.encoder: encoder for need, _, encoder in needed}
    by_dataset = {(need.dataset, need.encoder, need.digest): dataset for need, dataset, _ in needed}
    for need in merge_needs([need for need, _, _ in needed]):
        if inventory.borrowed(need) is not None:
            continue
        datasets[need.dataset] = by_dataset[need.dataset, need.encoder, need.digest]
        wanted.setdefault(need.dataset, {})[need.encoder + need.digest] = (need, encoders[need.encoder])
    for name, needs in wanted.items():
        if stop.requested:
            return
        dataset = datasets[name]
        work = ExtractPass(
            workdir=inventory.folder,
            features=inventory.workspace.features,
            dataset=dataset,
            jobs=list(needs.values()),
            blocks=dataset.blocks,
            max_bad_fraction=inventory.config.samples.max_bad_fraction,
            title=f"features of {name} ({len(needs)} encoders)",
        )
        extract_features(work, options, reporter, stop)
