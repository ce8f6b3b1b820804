"""The index stage: look at every sample once, write down where it is, what it contains and its label."""

from collections.abc import Collection, Sequence

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.index import index_dataset
from unic_pipe.pipeline.samples.scan import IndexingStopped
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.errors import UserError, did_you_mean


def index(
    inventory: Inventory,
    names: Sequence[str],
    reporter: Reporter,
    stop: Stop,
    optional: Collection[str] = (),
    compare: bool = False,
) -> None:
    """Index datasets that are missing or have new shards; the others are only compared with their files.

    Of `optional` ones that cannot be used it only says why, and the inventory takes note. `compare`: tars that were
    written again are read, for their labels; copies of large datasets would be by every stage.
    Raises UserError: no such dataset, no samples, damaged tars, repeated keys, another number of rows than expected.
    """
    known = inventory.config.samples.datasets
    for name in names:
        if name not in known:
            raise UserError(
                f"No dataset is named {name!r}{did_you_mean(name, list(known))}",
                "Name it under samples.datasets in unic-pipe.yaml, or choose one that is there.",
            )
    for name in names:
        view = inventory.dataset(name)
        if view.state == "fresh" and not (compare and view.reason):
            if view.reason:
                reporter.say(f"dataset {name}: {view.reason}")
            continue
        try:
            dataset = index_dataset(
                inventory.folder,
                name,
                known[name],
                inventory.config.samples,
                reporter,
                stop,
                place=inventory.workspace.samples,
                options=inventory.config.storage.options,
                compare=compare,
            )
        except IndexingStopped:
            return
        except UserError as error:
            if name not in optional:
                raise
            inventory.refuse(name, error)
            continue
        inventory.refresh(name, dataset)
