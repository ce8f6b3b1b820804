"""The command `index`."""

from typing import Annotated

import typer

from unic_pipe.cli.completing import datasets as complete
from unic_pipe.cli.options import ConfigOption, SetOption, StateOption, open_inventory
from unic_pipe.cli.running import staged
from unic_pipe.cli.status import print_state

EXAMPLES = ("index", "index train val")


def index(
    datasets: Annotated[
        list[str] | None, typer.Argument(help="Which (default: all that are used).", autocompletion=complete)
    ] = None,
    as_json: StateOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Index samples: where each image is, a hash of its bytes, its label.

    The other stages do this by themselves for what they need. New tars and images are added as new rows. Tars that were
    written again are read again: other labels count from then on, other images are refused.
    """
    from unic_pipe.pipeline.workspace.status import only_evaluated, used_datasets
    from unic_pipe.stages.indexing import index as index_stage

    inventory = open_inventory(config, overrides)
    with staged(inventory, "index") as (reporter, stop):
        names, optional = datasets or used_datasets(inventory), only_evaluated(inventory)
        index_stage(inventory, names, reporter, stop, optional, compare=True)
        if inventory.refused:  # of several, the first: the others' data are indexed all the same
            raise next(iter(inventory.refused.values()))
    print_state(as_json, inventory)
    return stop.exit_code
