"""Options that several commands share, and what every command begins with."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

if TYPE_CHECKING:
    from unic_pipe.pipeline.workspace.inventory import Inventory

NO_VALUE = ""
"""Metavar of a flag, which takes no value."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="PATH", help="Configuration file, or its folder (default: unic-pipe.yaml here)."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one value of the configuration (repeatable)."),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        "--rows",
        metavar="N|N%",
        help="Pilot on the first rows only (whole blocks), as 1% or 5000; a full run reuses them.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", metavar=NO_VALUE, help="Print one JSON object on stdout.")]
StateOption = Annotated[
    bool,
    typer.Option("--json", metavar=NO_VALUE, help="At the end print on stdout what `status --json` says then."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:N or mps (default: compute.device of the configuration)."
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", min=0, help="Worker processes (Dask, on this machine); 0: threads of this one."
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="An existing Dask scheduler: tcp://HOST:8786, or its scheduler file."
    ),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Every N-th block, beginning with the I-th (from 1 to N): for job arrays without a scheduler.",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", metavar=NO_VALUE, help="Start although the disk looks too small or the CPU too slow."),
]
RestartOption = Annotated[
    bool,
    typer.Option("--restart", metavar=NO_VALUE, help="Train changed settings under the same name; old runs are kept."),
]


def add_command(app: typer.Typer, panel: str, command: Callable[..., int], *examples: str) -> None:
    """Add a command to the program: its docstring is the help, with examples of what to type below."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    # The lines of later paragraphs would be kept as they are broken here.
    text = "\n\n".join(" ".join(paragraph.splitlines()) for paragraph in paragraphs)
    lines = ["Examples:", *(f"$ [cyan]unic-pipe {example}[/]" for example in examples)]
    app.command(command.__name__.rstrip("_"), rich_help_panel=panel, help=text, epilog="\n".join(lines))(command)


def open_inventory(config: Path | None, overrides: list[str] | None, rows: str | None = None) -> Inventory:
    """Read the configuration and look at the working folder."""
    from unic_pipe.pipeline.workspace.configuration import load_workspace, parse_rows
    from unic_pipe.pipeline.workspace.inventory import Inventory

    if rows is not None:
        parse_rows(rows)
    return Inventory(load_workspace(config, overrides or ()), rows)


def print_json(document: BaseModel | dict[str, object]) -> None:
    """One JSON object on stdout; everything else a command says goes to stderr."""
    body = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=plain) + "\n")
