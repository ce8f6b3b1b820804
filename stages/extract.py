"""The extract stage: each teacher runs once over the views of each sample; its features go to the cache."""

from collections.abc import Sequence

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.encoders.summary import sentence
from unic_pipe.pipeline.extraction.run import Extraction, ExtractOptions, ExtractPass, extract_features
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import extraction_needs, ready_teachers
from unic_pipe.pipeline.workspace.unmeant import same_teachers
from unic_pipe.schemas.errors import UserError


def extract(
    inventory: Inventory,
    teachers: Sequence[str],
    options: ExtractOptions,
    reporter: Reporter,
    stop: Stop,
) -> dict[str, Extraction]:
    """Bring the features of some teachers (none named: all) up to date over the training and validation sets; what
    came of each dataset.

    The datasets must be indexed. Teachers that share a dataset share one pass: images are decoded once.

    Raises:
        UserError: unknown teacher, missing weights, nothing to extract.
        StageError: too many unusable rows, disk too small, views that render differently.
    """
    chosen = tuple(dict.fromkeys(teachers))
    if not chosen:
        chosen, waiting = ready_teachers(inventory)
        for error in waiting:
            reporter.say(f"extract: {error.message}")
        if waiting and not chosen:
            raise waiting[0]
    needs = extraction_needs(inventory, chosen)
    if not needs:
        raise UserError(
            "There is nothing to extract: no teacher is configured." if not chosen else "No dataset to extract from.",
            "Add teachers: and samples.datasets: to unic-pipe.yaml (unic-pipe teachers lists the known ones).",
        )
    for need in needs:
        if (folder := inventory.borrowed(need)) is not None:
            reporter.say(f"extract {need.dataset} ({need.encoder}): nothing to do, read from {folder}")
    needs = [need for need in needs if inventory.borrowed(need) is None]
    for name in dict.fromkeys(need.encoder for need in needs):
        reporter.say(f"{name}: {sentence(inventory.teacher(name))}")
    for remark in same_teachers(inventory, chosen):
        reporter.say(remark)
    passes: dict[str, Extraction] = {}
    for name in dict.fromkeys(need.dataset for need in needs):
        if stop.requested:
            break
        work = _pass(inventory, name, [need for need in needs if need.dataset == name])
        found = passes[name] = extract_features(work, options, reporter, stop)
        if found.done == 0 and found.complete:
            reporter.say(f"{work.title}: nothing to do, all {found.total} units are there")
        elif found.before:
            reporter.say(f"{work.title}: {found.before} of {found.total} units were there already")
    return passes


def _pass(inventory: Inventory, name: str, needs: Sequence[FeatureNeed]) -> ExtractPass:
    """The pass over one dataset."""
    dataset = inventory.dataset(name).dataset
    assert dataset is not None
    return ExtractPass(
        workdir=inventory.folder,
        features=inventory.workspace.features,
        dataset=dataset,
        jobs=[(need, inventory.teacher(need.encoder)) for need in needs],
        blocks=inventory.block_limit(dataset),
        max_bad_fraction=inventory.config.samples.max_bad_fraction,
        title=f"extract {name} ({', '.join(need.encoder for need in needs)})",
    )
