"""How garbage looks on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.schemas.garbage import GarbageReport


def garbage_lines(report: GarbageReport, yes: bool) -> RenderableType:
    """Every item with its size, the total, what is left alone, and what to type next."""
    parts: list[RenderableType] = []
    if report.items:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("path", overflow="fold")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("files", justify="right", no_wrap=True)
        table.add_column("why", overflow="fold")
        for item in report.items:
            table.add_row(item.path, human_bytes(item.bytes), f"{item.files:,}", item.why)
        parts.append(table)
    total = f"{human_bytes(report.bytes)} in {len(report.items):,} places"
    if not report.items:
        parts.append(Text("Nothing to remove.", style="green"))
    elif yes:
        parts.append(Text(f"Removing {total}.", style="bold"))
    else:
        parts.append(Text.assemble(f"{total}. To remove it: ", ("unic-pipe gc --yes", "bold cyan")))
    parts += [Text(f"left alone, not all of it is unic-pipe's: {path}", style="dim") for path in report.unknown]
    return Group(*parts)
