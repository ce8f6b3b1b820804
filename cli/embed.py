"""The command `embed`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import NO_VALUE, JsonOption, open_inventory, print_json
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.printed import WrittenReport

if TYPE_CHECKING:
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.stages.embed import Embedded

EXAMPLES = (
    "embed dino photos/ -o photos.parquet",
    "embed timm:vit_small_patch14_dinov2.lvd142m 'shards/{000..146}.tar' -o train.npz --tokens both",
    "embed student:main list.txt -o list.safetensors",
)
TOKENS: dict[str, tuple[TokenType, ...]] = {"cls": ("cls",), "patch": ("patch",), "both": ("cls", "patch")}


def embed(
    encoder: Annotated[
        str,
        typer.Argument(
            help="A name (unic-pipe teachers), timm:NAME, student:NAME, a weights file, an exported student's folder."
        ),
    ],
    images: Annotated[
        str, typer.Argument(help="A folder of images, tars (also s3://), an image, or a text file with a path a line.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Ends with .parquet, .npz or .safetensors.")
    ],
    tokens: Annotated[str, typer.Option(metavar="cls|patch|both", help="What is written of each image.")] = "cls",
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="N", min=1, help="In pixels.", show_default="the encoder's own"),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME", help="timm's, for a weights file that does not say it."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps (default: cuda if it is there)."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per forward pass (default: 64).")
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", metavar=NO_VALUE, help="Download the encoder's missing weights.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar=NO_VALUE, help="Replace the file.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write features of any images by any encoder into one file, with the images' names.

    Of each image the centre crop, as evaluations see it. Images that cannot be read are listed and left out. Killed, the
    same command goes on from what was finished; the file appears whole or not at all.
    """
    from unic_pipe.pipeline.process.progress import ConsoleReporter, human_bytes
    from unic_pipe.pipeline.process.stopping import Stop

    reporter = ConsoleReporter()
    with Stop() as stop:
        found = embed_step(
            encoder, images, output, tokens, reporter, stop, image_size=image_size, architecture=architecture,
            device=device, batch=batch, fetch=fetch, overwrite=overwrite,
        )  # fmt: skip
    if found is None:
        reporter.say("Stopped; finished work is kept, and the same command goes on.")
        return stop.exit_code
    shapes = ", ".join(f"{token} {' × '.join(map(str, shape))}" for token, shape in found.shapes.items())
    left = len(found.left_out)
    without = f"; {left:,} of {found.rows + left:,} images are left out" if left else ""
    reporter.say(f"Wrote {output}: {found.rows:,} rows of {shapes}, {human_bytes(found.bytes)}{without}.")
    if as_json:
        remarks = tuple(f"{key} is left out: {why}" for key, why in found.left_out.items())
        print_json(WrittenReport(paths=(str(found.path),), remarks=remarks))
    return 0


def embed_step(
    encoder: str,
    images: str,
    output: Path,
    tokens: str,
    reporter: Reporter,
    stop: Stop,
    *,
    image_size: int | None = None,
    architecture: str | None = None,
    device: str | None = None,
    batch: int | None = None,
    fetch: bool = False,
    overwrite: bool = False,
) -> Embedded | None:
    """Find the encoder, seen from the current folder, and write its features; None after a stop."""
    from unic_pipe.pipeline.encoders.licences import UNKNOWN
    from unic_pipe.pipeline.samples.plain import find_images
    from unic_pipe.pipeline.workspace.any_encoder import any_encoder

    if tokens not in TOKENS:
        raise UserError(f"--tokens {tokens}: there is no such type.", "Use --tokens cls, patch or both.")
    reporter.say("looking at images and weights")
    from unic_pipe.pipeline.extraction.run import ExtractOptions
    from unic_pipe.stages.embed import check_target
    from unic_pipe.stages.embed import embed as embed_stage

    check_target(output, overwrite)
    found = find_images(images)
    resolved = any_encoder(encoder, Path.cwd(), image_size, architecture, reporter.say if fetch else None)
    if resolved.licence == UNKNOWN:
        resolved = replace(resolved, licence=_students_licence(encoder, Path.cwd()))
    options = ExtractOptions(device=device or "auto", batch=batch)
    return embed_stage(resolved, found, output, TOKENS[tokens], options, reporter, stop, overwrite)


def _students_licence(text: str, folder: Path) -> str:
    """What follows from the teachers of a student of this working folder; unknown for any other encoder."""
    from unic_pipe.pipeline.encoders.licences import UNKNOWN
    from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME
    from unic_pipe.stages.export.facts import licence_of
    from unic_pipe.stages.export.subject import find, subject

    if not (folder / CONFIG_NAME).is_file():
        return UNKNOWN
    try:
        inventory = open_inventory(folder, None)
        return licence_of(subject(find(text.removeprefix("student:"), inventory), inventory))
    except UnicPipeError:
        return UNKNOWN
