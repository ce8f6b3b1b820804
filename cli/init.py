"""The command `init`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.asking import Answers, ask, ask_data
from unic_pipe.cli.options import JsonOption, print_json
from unic_pipe.schemas.printed import WrittenReport

if TYPE_CHECKING:
    from rich.text import Text

    from unic_pipe.pipeline.samples.survey import Survey
    from unic_pipe.schemas.config import StudentConfig

EXAMPLES = (
    "init --data /data/imagenet",
    "init --data 'shards/{000..146}.tar' --teachers dino,deit3",
    "init --data photos --student tf_efficientnet_lite0 --start pretrained --teachers lite1",
    "init --data /data/imagenet --preset unic-b",
)
TEACHERS, STUDENT = "dino,ibot,deit3,dbot-ft", "vit_small_patch16_224"
"""What `init` writes unless it is told otherwise."""


def init(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Tars (also s3://BUCKET/PREFIX), class folders, a flat folder, or a folder of splits.",
            show_default="asked for, on a terminal",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A published recipe: unic-b, unic-l, am-radio, phi-s, angle, eupe, theia, dune, "
            "nd, tinyvit, task-specific, proteus, lightly-v1, lightly-v3.",
        ),
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
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="WEIGHTS",
            help="What it starts from: pretrained, timm:NAME, checkpoint:PATH, teacher:NAME.",
            show_default="nothing",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="N", min=1, help="The student's, in pixels.", show_default="fits"),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, show_default="fits")] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", min=1, show_default="fits")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="Views: unic, gentle or center.", show_default="fits"),
    ] = None,
    views: Annotated[
        int, typer.Option("--views", metavar="N", min=1, help="Cached views of every training sample.")
    ] = 2,
    as_json: JsonOption = False,
) -> int:
    """Look at your data and write a commented unic-pipe.yaml here.

    Shows what was found and how long indexing will take; reads only a little of the data. What is not given fits what
    was found: batch, epochs, image size and blocks, and a validation set and benchmarks from the splits that there are.
    Without --data it asks, on a terminal, and says which command does the same.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import messages
    from unic_pipe.schemas.errors import UserError
    from unic_pipe.schemas.starts import PRETRAINED
    from unic_pipe.stages.distill.blueprint import build, shape_of
    from unic_pipe.stages.init.fit import STUDENT as NAME
    from unic_pipe.stages.init.fit import Wishes
    from unic_pipe.stages.init.stage import fitted, label_remarks, look, missing_weights, write_config, write_preset

    if data is None and preset is not None:
        data = ask_data()
    elif data is None:
        asked = ask(Answers(teachers=teachers or TEACHERS, student=student or STUDENT, start=start))
        data, teachers, student, start = asked.data, asked.teachers, asked.student, asked.start
    surveys = look(data)
    console = messages() if as_json else Console(highlight=False)
    console.soft_wrap = True
    for name, found in surveys.items():
        console.print(survey_line(name, found))
    if preset is not None:
        if any(given is not None for given in (teachers, student, start, image_size, epochs, batch, recipe)):
            raise UserError(
                f"--preset {preset} says itself which teachers, which student and how it is trained.",
                "Leave the other options out (all but --data and --views), and edit what it writes.",
            )
        path, names = write_preset(Path.cwd(), surveys, preset, views)
        missing = missing_weights(Path.cwd(), names)
    else:
        names = [name.strip() for name in (teachers or TEACHERS).split(",") if name.strip()]
        begins = f"timm:{student or STUDENT}" if start == PRETRAINED else start
        missing = missing_weights(Path.cwd(), [*names, *([begins] if begins is not None else [])])
        wishes = Wishes(image_size, epochs, batch, recipe, views, start)
        try:
            config = fitted(Path.cwd(), surveys, names, shape_of(student or STUDENT, image_size), wishes, _has_gpu())
            build(config.students[NAME])
        except UserError as error:
            hint = (error.hint or "").replace("students.NAME.architecture", "--student")
            raise UserError(error.message, hint.replace("students.NAME.image_size", "--image-size") or None) from None
        path = write_config(Path.cwd(), config, surveys)
        console.print(training_line(config.students[NAME], surveys))
    console.print(f"Wrote [bold]{path.name}[/].")
    remarks = label_remarks(surveys)
    for remark in remarks:
        console.print(remark, style="yellow", markup=False)
    if missing:
        console.print(f"Weights of {', '.join(missing)} are not here yet: [bold cyan]unic-pipe teachers --fetch[/]")
    console.print("Next: [bold cyan]unic-pipe run[/]   (a pilot first: [cyan]unic-pipe run --rows 1%[/])")
    if as_json:
        remarks += [f"weights of {name} are not here yet" for name in missing]
        print_json(WrittenReport(paths=(str(path),), remarks=tuple(remarks)))
    return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def survey_line(name: str, found: Survey) -> Text:
    """What `init` found as one dataset."""
    from rich.text import Text

    from unic_pipe.pipeline.process.progress import duration, human_bytes

    about = "" if found.exact else "about "
    classes = (
        f"{found.classes:,} classes" if found.classes else "labels from a file" if found.config.labels else "no labels"
    )
    time = f"about {duration(found.seconds)}" if found.seconds >= 1 else "a second"
    return Text.assemble(
        (name, "bold"),
        f": {about}{found.rows:,} images in {found.layout.replace('-', ' ')}, {classes}, {human_bytes(found.bytes)};"
        f" indexing takes {time}",
    )


def training_line(student: StudentConfig, surveys: Mapping[str, Survey]) -> str:
    """How long the training is that was written, in steps; `plan` says what that takes."""
    optimizer = student.optimizer
    steps = surveys[next(iter(student.datasets))].rows // optimizer.batch
    return (
        f"Student: {student.architecture} at {student.image_size} pixels, {optimizer.epochs * steps:,} steps of "
        f"{optimizer.batch} images ({optimizer.epochs} epochs); what that takes here: unic-pipe plan, after index"
    )
