"""The commands that begin something: demo, init, pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import ConfigOption, DeviceOption, SetOption, add_command, open_inventory

if TYPE_CHECKING:
    pass


TEACHERS, STUDENT = "dino,ibot,deit3,dbot-ft", "vit_small_patch16_224"
"""What `init` writes unless it is told otherwise."""


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Beginning"
    add_command(app, panel, demo, "demo", "demo /tmp/try")
    add_command(
        app,
        panel,
        init,
        "init --data /data/imagenet",
        "init --data 'shards/{000..146}.tar' --teachers dino,deit3",
        "init --data /data/imagenet --preset unic-b",
    )
    add_command(app, panel, pack, "pack train shards/")


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo lives.")] = Path("demo"),
    device: DeviceOption = None,
) -> int:
    """Watch the whole pipeline run on real data.

    Two ImageNet teachers, scanned digits, a small student, a report: about five minutes on two CPU cores. Stop it and
    run it again: it goes on. Run it twice: nothing is left to do.
    """
    from unic_pipe.cli.running import staged
    from unic_pipe.cli.work import Where, extract_options, run_everything
    from unic_pipe.pipeline.workspace.configuration import load_workspace
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.stages.demo.config import write_config
    from unic_pipe.stages.demo.data import write_samples

    folder.mkdir(parents=True, exist_ok=True)
    write_samples(folder / "data")
    workspace = load_workspace(write_config(folder))
    first = Inventory(workspace)
    with staged(first, "demo") as (reporter, stop), extract_options(first, Where(device), reporter, stop) as options:
        run_everything(lambda: Inventory(workspace), options, device, False, reporter, stop)
    return stop.exit_code


def init(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Tars (also s3://BUCKET/PREFIX), class folders, a flat folder, or a folder of splits.",
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A setting of the paper: unic-b or unic-l.", show_default=False),
    ] = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            "--teachers",
            metavar="A,B,...",
            help="Names (unic-pipe teachers), timm:NAME, checkpoint:PATH.",
            show_default=TEACHERS,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", metavar="NAME", help="The student's architecture in timm.", show_default=STUDENT),
    ] = None,
    views: Annotated[
        int, typer.Option("--views", metavar="N", min=1, help="Cached views of every training sample.")
    ] = 2,
) -> int:
    """Look at your data and write a commented unic-pipe.yaml here.

    Shows what was found and how long indexing will take; reads only a little of the data.
    """
    from rich.console import Console

    from unic_pipe.cli.show import survey_line
    from unic_pipe.schemas.errors import UserError
    from unic_pipe.stages.init.stage import look, missing_weights, write_config, write_preset

    surveys = look(data)
    console = Console(highlight=False, soft_wrap=True)
    for name, found in surveys.items():
        console.print(survey_line(name, found))
    if preset is not None:
        if teachers is not None or student is not None:
            raise UserError(
                f"--preset {preset} names its teachers and its student.", "Leave out --teachers and --student."
            )
        path, names = write_preset(Path.cwd(), surveys, preset, views)
    else:
        names = [name.strip() for name in (teachers or TEACHERS).split(",") if name.strip()]
    missing = missing_weights(Path.cwd(), names)
    if preset is None:
        path = write_config(Path.cwd(), surveys, names, student or STUDENT, views, _has_gpu())
    console.print(f"Wrote [bold]{path.name}[/].")
    if missing:
        console.print(f"Weights of {', '.join(missing)} are not here yet: [bold cyan]unic-pipe teachers --fetch[/]")
    console.print("Next: [bold cyan]unic-pipe run[/]   (a pilot first: [cyan]unic-pipe run --rows 1%[/])")
    return 0


def pack(
    dataset: Annotated[str, typer.Argument(help="A configured dataset whose source is a folder.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the tars.")],
    shard_mb: Annotated[int, typer.Option("--shard-mb", metavar="N", min=1, help="Megabytes per tar.")] = 256,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Write a folder of images as WebDataset tars (optional).

    Bytes are unchanged, the order is random and always the same. Tars are quicker to read from network disks.
    """
    from unic_pipe.cli.running import staged
    from unic_pipe.pipeline.process.progress import human_bytes
    from unic_pipe.pipeline.samples.pack import pack as pack_samples
    from unic_pipe.stages.indexing import index

    inventory = open_inventory(config, overrides)
    with staged(inventory, "pack") as (reporter, stop):
        index(inventory, [dataset], reporter, stop)
        found = inventory.dataset(dataset).dataset
        assert found is not None, "indexed before"
        packed = pack_samples(found, destination, shard_mb * 1_000_000, reporter, stop)
        reporter.say(
            f"{packed.rows:,} images, {human_bytes(packed.bytes)}, in {packed.shards} tars ({packed.written} written now). "
            f"To use them: source: {destination / packed.pattern}"
        )
    return stop.exit_code


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
