"""What can be said to `init` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from unic_pipe.cli.options import NO_VALUE

TEACHERS, STUDENT = "dino,ibot,deit3,dbot-ft", "vit_small_patch16_224"
"""What `init` writes unless it is told otherwise."""
_FITS = "what fits the data"

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Tars (also s3://BUCKET/PREFIX), class folders, a flat folder, or a folder of splits.",
        show_default="asked for, on a terminal",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A published recipe: unic-b, unic-l, am-radio, phi-s, angle, eupe, theia, dune, "
        "nd, tinyvit, task-specific, proteus, lightly-v1, lightly-v3.",
    ),
]
TeachersOption = Annotated[
    str | None,
    typer.Option(
        "--teachers",
        metavar="A,B,...",
        help="Names (unic-pipe teachers), timm:NAME, checkpoint:PATH.",
        show_default=TEACHERS,
    ),
]
StudentOption = Annotated[
    str | None,
    typer.Option("--student", metavar="NAME", help="The student's architecture in timm.", show_default=STUDENT),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="WEIGHTS",
        help="What it starts from: pretrained, timm:NAME, checkpoint:PATH, teacher:NAME.",
        show_default="nothing",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", metavar="N", min=1, help="The student's, in pixels.", show_default=_FITS),
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", metavar="N", min=1, help="Passes over the training set.", show_default=_FITS)
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", metavar="N", min=1, help="Images of a training step.", show_default=_FITS)
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Augmentation of the views: unic, gentle (tiny images) or center (none).",
        show_default=_FITS,
    ),
]
ViewsOption = Annotated[int, typer.Option("--views", metavar="N", min=1, help="Cached views of every training sample.")]
NoMeasureOption = Annotated[
    bool,
    typer.Option(
        "--no-measure",
        metavar=NO_VALUE,
        help="Do not measure which floating-point types are worth it, where the device has several (20 s).",
    ),
]
