"""The command `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from unic_pipe.cli.options import DeviceOption, StateOption
from unic_pipe.cli.run import run_everything
from unic_pipe.cli.running import Where, extract_options, staged
from unic_pipe.cli.status import print_state

EXAMPLES = ("demo", "demo /tmp/try")


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo lives.")] = Path("demo"),
    device: DeviceOption = None,
    as_json: StateOption = False,
) -> int:
    """Watch the whole pipeline run on real data.

    A teacher that knows the world, one that knows digits, one student of both, a report: some minutes on two CPU cores.
    Stop it and run it again: it goes on. Run it twice: nothing is left to do.
    """
    from unic_pipe.pipeline.workspace.configuration import load_workspace
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.stages.demo.config import IMAGES, has_our_images, write_config
    from unic_pipe.stages.demo.data import seen_test_images, write_samples

    folder.mkdir(parents=True, exist_ok=True)
    workspace = load_workspace(write_config(folder))
    ours = has_our_images(workspace.config)
    if ours:
        write_samples(folder / IMAGES)
    first = Inventory(workspace)
    with staged(first, "demo") as (reporter, stop), extract_options(first, Where(device), reporter, stop) as options:
        run_everything(lambda: Inventory(workspace), options, device, False, reporter, stop)
        if ours and not stop.requested:
            pool, tests, seen = seen_test_images(folder / IMAGES)
            reporter.say(f"{seen} of the {tests:,} test images are among the {pool:,} that the student learned from.")
    print_state(as_json, first)
    return stop.exit_code
