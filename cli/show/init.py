"""How data that `init` found looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from unic_pipe.pipeline.process.progress import duration, human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unic_pipe.pipeline.samples.survey import Survey
    from unic_pipe.schemas.config import StudentConfig


def survey_line(name: str, found: Survey) -> Text:
    """What `init` found as one dataset."""
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
