"""The evaluate stage as a command runs it: features of every benchmark through the cache, then the probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pipeline.cache.reader import FeatureCache
from pipeline.encoders import ResolvedEncoder
from pipeline.engine import pick_device
from pipeline.evaluations import no_labels
from pipeline.extraction import ExtractOptions, ExtractPass, extract_features
from pipeline.features import FeatureNeed, merge_needs
from pipeline.inventory import Inventory
from pipeline.planning import EVALUATION, evaluates, labelled_datasets
from pipeline.probing import ProbePlan, benchmark_pairs, probe_plans
from pipeline.progress import Reporter
from pipeline.protocols import other_plans
from pipeline.samples.dataset import Dataset
from pipeline.stopping import Stop
from schemas.errors import StageError, UserError
from schemas.evaluations import ResultRecord
from stages.evaluate.features import Features, read_features
from stages.evaluate.other_jobs import other_job
from stages.evaluate.run import ProbeJob, evaluate


def evaluate_all(inventory: Inventory, options: ExtractOptions, reporter: Reporter, stop: Stop) -> list[ResultRecord]:
    """Probe every finished student, every teacher and the baselines on every benchmark; skips what is fresh.

    Benchmarks whose datasets are not indexed, or not what their names promise, are left out, which is said.

    Raises:
        UserError: no benchmark (or none that can be run), missing weights, no labels.
        StageError: features could not be extracted.
    """
    if not evaluates(inventory):
        raise UserError(
            "Nothing to evaluate: no benchmark is configured.",
            "Name a labelled dataset pair: evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
        )
    pairs, skipped = benchmark_pairs(inventory)
    others = other_plans(inventory)
    skipped |= others.skipped
    for name, why in skipped.items():
        reporter.say(f"evaluate: {name} is skipped: {why}")
    if not pairs and not others.plans:
        raise _nothing_usable(inventory, skipped)
    for name in labelled_datasets(inventory):
        dataset = inventory.dataset(name).dataset
        if dataset is not None and not dataset.manifest.labelled:
            raise no_labels(name)
    plans, waiting = probe_plans(inventory)
    for name in dict.fromkeys([*waiting, *others.waiting]):
        reporter.say(f"evaluate: {name} is not finished, so it is left out for now (unic-pipe distill)")
    needed = [(need, dataset, p.encoder) for p in plans for need, dataset in (p.train, p.test)]
    needed += [(need, dataset, p.encoder) for p in others.plans for need, dataset in p.needs]
    _extract(inventory, needed, options, reporter, stop)
    if stop.requested:
        return []
    jobs = [_job(inventory, plan) for plan in plans]
    device = pick_device(options.device)
    other = [other_job(inventory, plan) for plan in others.plans]
    return evaluate(inventory.config, inventory.folder, EVALUATION, jobs, reporter, stop, device, other)


def skipped_error(inventory: Inventory) -> StageError | None:
    """One error for all benchmarks that were left out, or None; the results of the others are kept either way."""
    skipped = benchmark_pairs(inventory)[1] | other_plans(inventory).skipped
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
    return UserError(f"Nothing to evaluate: no benchmark can be run; the first, {name}: {why}", "unic-pipe index")


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


def _job(inventory: Inventory, plan: ProbePlan) -> ProbeJob:
    return ProbeJob(
        benchmark=plan.benchmark,
        encoder=plan.encoder.name,
        role=plan.role,
        definition=plan.definition,
        train=partial(_features, inventory, *plan.train),
        test=partial(_features, inventory, *plan.test),
        note=plan.note,
        asked=plan.asked,
    )


def _features(inventory: Inventory, need: FeatureNeed, dataset: Dataset) -> Features:
    return read_features(FeatureCache(inventory.feature_folder(need)), dataset)
