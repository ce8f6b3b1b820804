"""Options that several commands share, and what every command begins with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

if TYPE_CHECKING:
    from pipeline.inventory import Inventory

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Configuration file or its folder (default: unic-pipe.yaml here).", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override one value, for instance --set students.main.seed=1 (repeatable).", show_default=False
    ),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        "--rows", help="Pilot: only the first blocks, 1% or 5000 rows; a full run reuses them.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:N or mps (default: compute.device).", show_default=False),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Worker processes (a Dask cluster on this machine); 0: threads here.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Start although the disk looks too small or the CPU too slow.")
]


def open_inventory(config: Path | None, overrides: list[str] | None, rows: str | None = None) -> Inventory:
    """Read the configuration and look at the working folder."""
    from pipeline.configuration import load_workspace
    from pipeline.inventory import Inventory

    return Inventory(load_workspace(config, overrides or ()), rows)


def print_json(document: BaseModel | dict[str, object]) -> None:
    """One JSON object on stdout; everything else a command says goes to stderr."""
    body = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
