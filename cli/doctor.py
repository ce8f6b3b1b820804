"""The command `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from unic_pipe.cli.options import ConfigOption, JsonOption, SetOption, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from unic_pipe.stages.doctor import Check

EXAMPLES = ("doctor",)


def doctor(as_json: JsonOption = False, config: ConfigOption = None, overrides: SetOption = None) -> int:
    """Check this machine: device, decode and disk rates, weights found, write access, versions."""
    from rich.console import Console

    from unic_pipe.stages.doctor import examine

    checks = examine(config, overrides or ())
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "ok": all(c.ok for c in checks)})
    else:
        show_checks(checks, Console(highlight=False))
    return 0 if all(c.ok for c in checks) else 1


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """What `doctor` found, a line a check; advice is not wrapped, so that it can be copied."""
    from rich.table import Table
    from rich.text import Text

    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = Text("✔", "green") if check.ok else Text("✘", "red")
        table = Table.grid(padding=(0, 1))
        table.add_row(mark, Text(f"{check.name:<{width}} ", "bold"), Text(check.finding))
        console.print(table)
        if not check.ok and check.advice:
            console.print(Text.assemble((" " * (width + 4) + "→ ", "cyan"), check.advice), soft_wrap=True)
