"""The command reference: what `unic-pipe COMMAND --help` says, for every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from unic_pipe.cli.main import app


def commands() -> str:
    """A section for every command, in the groups of `--help`."""
    root: Any = typer.main.get_command(app)
    panels: dict[str, list[str]] = {}
    for name, command in root.commands.items():
        panels.setdefault(command.rich_help_panel, []).extend(_command(f"unic-pipe {name}", command))
    return "\n".join(f"## {panel}\n\n" + "\n".join(lines) for panel, lines in panels.items())


def _command(name: str, command: Any) -> Iterator[str]:
    yield from (f"### {name}", "", _plain(command.help or ""), "")
    table = [f"| `{_spelling(p)}` | {_cell(p)} |" for p in command.params if p.name != "help" and not p.hidden]
    if table:
        yield from ("| option | meaning |", "|---|---|", *table, "")
    examples = [line.removeprefix("$ ") for line in _plain(command.epilog or "").splitlines() if line.startswith("$ ")]
    if examples:
        yield from ("```sh", *examples, "```", "")
    for inner, each in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {inner}", each)


def _plain(text: str) -> str:
    """Help without rich's marks."""
    for mark in ("[cyan]", "[bold]", "[/]"):
        text = text.replace(mark, "")
    return text


def _spelling(parameter: Any) -> str:
    metavar = parameter.metavar if parameter.metavar is not None else ""
    if parameter.param_type_name == "argument":
        return metavar or str(parameter.name).upper()
    return " ".join([", ".join(parameter.opts), metavar]).strip()


def _cell(parameter: Any) -> str:
    shown = parameter.show_default if isinstance(getattr(parameter, "show_default", None), str) else None
    value = shown or (parameter.default if isinstance(parameter.default, int | str) else None)
    default = f" Default: {value}." if value not in (None, "", False, True) else ""
    required = " Required." if parameter.required else ""
    return " ".join(((getattr(parameter, "help", "") or "") + default + required).split()).replace("|", "\\|")
