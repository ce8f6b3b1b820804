"""The command `init`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unic_pipe.cli.asking import Answers, ask, ask_data
from unic_pipe.cli.init_options import (
    STUDENT,
    TEACHERS,
    BatchOption,
    DataOption,
    EpochsOption,
    ImageSizeOption,
    NoMeasureOption,
    PresetOption,
    RecipeOption,
    StartOption,
    StudentOption,
    TeachersOption,
    ViewsOption,
)
from unic_pipe.cli.options import JsonOption, print_json
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.printed import WrittenReport
from unic_pipe.schemas.starts import PRETRAINED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from unic_pipe.pipeline.samples.survey import Survey
    from unic_pipe.schemas.config import Config, StudentConfig
    from unic_pipe.stages.init.fit import Wishes

EXAMPLES = (
    "init --data /data/imagenet",
    "init --data 'shards/{000..146}.tar' --teachers dino,deit3",
    "init --data photos --student tf_efficientnet_lite0 --start pretrained --teachers lite1",
    "init --data /data/imagenet --preset unic-b",
)
MEASURED_S = 20.0
"""Seconds that measuring teachers may take, about."""


def init(
    data: DataOption = None,
    preset: PresetOption = None,
    teachers: TeachersOption = None,
    student: StudentOption = None,
    start: StartOption = None,
    image_size: ImageSizeOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    recipe: RecipeOption = None,
    views: ViewsOption = 2,
    no_measure: NoMeasureOption = False,
    as_json: JsonOption = False,
) -> int:
    """Look at your data and write a commented unic-pipe.yaml here.

    Shows what was found and how long indexing will take; reads only a little of the data. What is not given fits what
    was found: batch, epochs, image size and blocks, and a validation set and benchmarks from the splits that there are.
    Where the device has several floating-point types, it measures which each teacher is worth (teachers --measure).
    Without --data it asks, on a terminal, and says which command does the same.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import messages
    from unic_pipe.stages.init.fit import STUDENT as NAME
    from unic_pipe.stages.init.fit import Wishes
    from unic_pipe.stages.init.stage import (
        label_remarks,
        look,
        missing_weights,
        preset_for,
        refuse_existing,
        write_config,
        write_preset,
    )

    folder = Path.cwd()
    refuse_existing(folder)
    if preset is not None:
        _alone(preset, teachers, student, start, image_size, epochs, batch, recipe)
        data = data or ask_data()
    elif data is None:
        asked = ask(Answers(teachers=teachers or TEACHERS, student=student or STUDENT, start=start))
        data, teachers, student, start = asked.data, asked.teachers, asked.student, asked.start
    surveys = look(data)
    console = messages() if as_json else Console(highlight=False)
    console.soft_wrap = True
    for name, found in surveys.items():
        console.print(survey_line(name, found))
    if preset is not None:
        config, names = preset_for(folder, surveys, preset, views)
        missing = missing_weights(folder, names)
        path = write_preset(folder, preset, _measured(config, missing, console, no_measure))
    else:
        names = [name.strip() for name in (teachers or TEACHERS).split(",") if name.strip()]
        begins = f"timm:{student or STUDENT}" if start == PRETRAINED else start
        missing = missing_weights(folder, [*names, *([begins] if begins is not None else [])])
        config = _fitting(surveys, names, student or STUDENT, Wishes(image_size, epochs, batch, recipe, views, start))
        path = write_config(folder, _measured(config, missing, console, no_measure), surveys)
        console.print(training_line(config.students[NAME], surveys))
    remarks = label_remarks(surveys)
    _next(path, missing, remarks, console)
    if as_json:
        remarks += [f"weights of {name} are not here yet" for name in missing]
        print_json(WrittenReport(paths=(str(path),), remarks=tuple(remarks)))
    return 0


def _alone(preset: str, *others: object) -> None:
    """Raises UserError: something was given that a preset decides."""
    if any(given is not None for given in others):
        raise UserError(
            f"--preset {preset} says itself which teachers, which student and how it is trained.",
            "Leave the other options out (all but --data and --views), and edit what it writes.",
        )


def _fitting(surveys: Mapping[str, Survey], teachers: Sequence[str], student: str, wishes: Wishes) -> Config:
    """The configuration that fits what was found, with a student that can be built.
    Raises UserError, in the words of the command line."""
    import torch

    from unic_pipe.stages.distill.blueprint import build, shape_of
    from unic_pipe.stages.init.fit import STUDENT as NAME
    from unic_pipe.stages.init.stage import fitted

    gpu = torch.cuda.is_available()
    try:
        config = fitted(Path.cwd(), surveys, teachers, shape_of(student, wishes.image_size), wishes, gpu)
        build(config.students[NAME])
    except UserError as error:
        hint = (error.hint or "").replace("students.NAME.architecture", "--student")
        raise UserError(error.message, hint.replace("students.NAME.image_size", "--image-size") or None) from None
    return config


def _measured(config: Config, missing: Sequence[str], console: Console, no_measure: bool) -> Config:
    """The configuration with the floating-point type that each teacher is worth, where the device has several."""
    from unic_pipe.cli.show.precision import precision_lines, worth
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.workspace.configuration import workspace_of
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.stages.precision import measure_teachers, with_dtypes, worth_measuring

    if no_measure or not worth_measuring(config.compute.device):
        return config
    if missing:
        console.print("Not measured yet which floating-point types are worth it: unic-pipe teachers --measure --write")
        return config
    inventory = Inventory(workspace_of(config, Path.cwd()))
    found = measure_teachers(inventory, ConsoleReporter(), settings=False, budget=MEASURED_S)
    console.print(precision_lines(found))
    for line in worth(found, config.cache.snr_db, calibrated=True):
        console.print(line)
    return with_dtypes(config, found)


def _next(path: Path, missing: Sequence[str], remarks: Sequence[str], console: Console) -> None:
    """What there is to know, and what to type now."""
    console.print(f"Wrote [bold]{path.name}[/].")
    for remark in remarks:
        console.print(remark, style="yellow", markup=False)
    if missing:
        console.print(f"Weights of {', '.join(missing)} are not here yet: [bold cyan]unic-pipe teachers --fetch[/]")
    console.print("Next: [bold cyan]unic-pipe run[/]   (a pilot first: [cyan]unic-pipe run --rows 1%[/])")


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
