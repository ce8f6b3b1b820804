"""The command `pack`."""

from pathlib import Path
from typing import Annotated

import typer

from unic_pipe.cli.completing import datasets
from unic_pipe.cli.options import ConfigOption, JsonOption, SetOption, open_inventory, print_json
from unic_pipe.cli.running import staged
from unic_pipe.schemas.printed import WrittenReport

EXAMPLES = ("pack train shards/",)


def pack(
    dataset: Annotated[
        str, typer.Argument(help="A configured dataset whose source is a folder.", autocompletion=datasets)
    ],
    destination: Annotated[Path, typer.Argument(help="Folder for the tars.")],
    shard_mb: Annotated[int, typer.Option("--shard-mb", metavar="N", min=1, help="Megabytes per tar.")] = 256,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Write a folder of images as WebDataset tars (optional).

    Bytes are unchanged, the order is random and always the same. Tars are quicker to read from network disks.
    """
    from unic_pipe.pipeline.process.progress import human_bytes
    from unic_pipe.pipeline.samples.pack import pack as pack_samples
    from unic_pipe.stages.indexing import index

    inventory = open_inventory(config, overrides)
    with staged(inventory, "pack") as (reporter, stop):
        index(inventory, [dataset], reporter, stop)
        found = inventory.dataset(dataset).dataset
        assert found is not None, "indexed before"
        packed = pack_samples(found, destination, shard_mb * 1_000_000, reporter, stop)
        remark = (
            f"{packed.rows:,} images, {human_bytes(packed.bytes)}, in {packed.shards} tars ({packed.written} written now). "
            f"To use them: source: {destination / packed.pattern}"
        )
        reporter.say(remark)
    if as_json:
        print_json(WrittenReport(paths=(str((destination / packed.pattern).absolute()),), remarks=(remark,)))
    return stop.exit_code
