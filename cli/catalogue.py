"""Showing and fetching teachers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import open_inventory, print_json

if TYPE_CHECKING:
    from pipeline.encoders.catalogue import CatalogueRow


def show_teachers(fetch: bool, as_json: bool, config: Path | None, overrides: list[str] | None) -> int:
    """Print the catalogue as a table or as JSON; with `fetch`, download what configured teachers lack."""
    from pipeline.configuration import CONFIG_NAME
    from pipeline.encoders.catalogue import catalogue

    if config is None and not Path(CONFIG_NAME).exists():
        rows = catalogue({}, Path("weights"))
        weights_dir = Path("weights")
    else:
        inventory = open_inventory(config, overrides)
        weights_dir = inventory.workspace.weights_dir
        rows = catalogue(inventory.config.teachers, weights_dir, inventory.folder)
        if fetch:
            _fetch([row for row in rows if row.configured], weights_dir)
            rows = catalogue(inventory.config.teachers, weights_dir, inventory.folder)
    if as_json:
        print_json({"teachers": [_as_dict(row) for row in rows]})
    else:
        _print(rows, weights_dir)
    return 0


def _fetch(rows: list[CatalogueRow], weights_dir: Path) -> None:
    from pipeline.encoders.fetch import fetch_weights
    from pipeline.progress import ConsoleReporter

    for row in rows:
        if row.path is None and row.card is not None:
            fetch_weights(row.card, weights_dir, ConsoleReporter().say)


def _as_dict(row: CatalogueRow) -> dict[str, object]:
    return {
        "name": row.name,
        "architecture": row.architecture,
        "source": row.source,
        "licence": row.licence,
        "path": str(row.path) if row.path is not None else None,
        "digest": row.digest,
        "problem": row.problem,
        "yaml": row.yaml,
        "configured": row.configured,
    }


def _print(rows: list[CatalogueRow], weights_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from schemas.base import short

    console = Console(highlight=False)
    for title, some in (
        ("Configured", [r for r in rows if r.configured]),
        ("Known", [r for r in rows if not r.configured]),
    ):
        if not some:
            continue
        table = Table(title=f"{title} teachers", title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in ("", "name", "architecture", "licence", "weights", "sha256"):
            table.add_column(column, overflow="fold")
        for row in some:
            mark = "[green]✔[/]" if row.path is not None else "[dim]·[/]"
            where = row.path.name if row.path is not None else f"[dim]{row.source}[/]"
            table.add_row(mark, row.name, row.architecture, row.licence, where, short(row.digest) if row.digest else "")
        console.print(table)
        console.print()
    missing = [r for r in rows if r.configured and r.path is None]
    for row in missing:
        console.print(f"[yellow]{row.name}[/]: {row.problem}")
    console.print(
        f"Weights are searched in [bold]{weights_dir}[/] first. Under teachers: in unic-pipe.yaml, write\n"
        "  [cyan]dino: {}[/]   [cyan]mine: {encoder: timm:NAME}[/]   [cyan]ours: {encoder: checkpoint:PATH}[/]"
    )
