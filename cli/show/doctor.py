"""How what `doctor` found looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from unic_pipe.stages.doctor import Check


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """What `doctor` found, a line a check; advice is not wrapped, so that it can be copied."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = Text("✔", "green") if check.ok else Text("✘", "red")
        table = Table.grid(padding=(0, 1))
        table.add_row(mark, Text(f"{check.name:<{width}} ", "bold"), Text(check.finding))
        console.print(table)
        if not check.ok and check.advice:
            console.print(Text.assemble((" " * (width + 4) + "→ ", "cyan"), check.advice), soft_wrap=True)
