"""The command `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "init --data /data/imagenet",
    "init --data 'shards/{000..146}.tar' --teachers dino,deit3",
    "init --data /data/imagenet --preset unic-b",
)
TEACHERS, STUDENT = "dino,ibot,deit3,dbot-ft", "vit_small_patch16_224"
"""What `init` writes unless it is told otherwise."""


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

    from unic_pipe.cli.show.init import survey_line
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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
