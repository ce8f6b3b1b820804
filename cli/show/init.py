"""How data that `init` found looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from unic_pipe.pipeline.process.progress import duration, human_bytes

if TYPE_CHECKING:
    from unic_pipe.pipeline.samples.survey import Survey


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
