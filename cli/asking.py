"""What `init` asks on a terminal when it is told nothing."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace

from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True)
class Answers:
    """The options that are asked for; before, what is proposed."""

    teachers: str
    student: str
    start: str | None
    data: str = ""


def ask(proposed: Answers) -> Answers:
    """Ask for images, teachers, student and its start, and show the command that needs no questions.

    Raises UserError: nobody is there to ask, or no image is where the first answer says.
    """
    from rich.console import Console
    from rich.prompt import Confirm, Prompt

    console = Console(highlight=False, markup=False)
    data = ask_data()
    console.print(_teachers_here())
    teachers = Prompt.ask("Teachers, by name", default=proposed.teachers)
    student = Prompt.ask("Student, a timm architecture", default=proposed.student)
    start = proposed.start
    if start is None and Confirm.ask("Begin with its pretrained weights, where timm has some?", default=False):
        start = "pretrained"
    found = replace(proposed, data=data, teachers=teachers, student=student, start=start)
    words = ["unic-pipe", "init", "--data", data, "--teachers", teachers, "--student", student]
    words += [] if start is None else ["--start", start]
    console.print(f"The same without questions: {shlex.join(words)}\n", soft_wrap=True)
    return found


def ask_data() -> str:
    """Ask for images alone. Raises UserError, as `ask` does."""
    from rich.prompt import Prompt

    from unic_pipe.stages.init.stage import look

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("Where are the images?", "unic-pipe init --data PATH")
    data = Prompt.ask("Your images (a folder, tars, s3://BUCKET/PREFIX)")
    look(data)
    return data


def _teachers_here() -> str:
    """Known teachers, those whose weights are here first."""
    from pathlib import Path

    from unic_pipe.pipeline.encoders.catalogue import catalogue

    rows = catalogue({}, Path("weights"), Path.cwd())
    here, other = ([row.name for row in rows if (row.path is not None) == there] for there in (True, False))
    lines = [f"Weights are here of: {', '.join(here)}"] if here else []
    return "\n".join([*lines, f"To be fetched: {', '.join(other)}", "All of them, and others: unic-pipe teachers"])
