"""The `unic-pipe` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli import examine, setup, work
from cli.errors import guarded
from schemas.base import PROGRAM_VERSION

app = typer.Typer(
    name="unic-pipe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done (also after SIGTERM), 1 failed, 2 the input is wrong, 130 Ctrl-C. "
    "--debug with any command shows tracebacks. Machines read --json.",
)
for module in (setup, work, examine):
    module.register(app)


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Distil several frozen vision encoders into one student, from a cache that pays for each teacher once.

    samples → [bold]extract[/] → feature cache → [bold]distill[/] → student → [bold]evaluate[/] → report

    Start with [bold]unic-pipe demo[/] (5 minutes, any laptop), or with [bold]unic-pipe init --data PATH[/], then
    [bold]unic-pipe run[/]. Every step can be stopped and run again: it goes on from what is finished.
    """
    if version:
        typer.echo(f"unic-pipe {PROGRAM_VERSION}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    sys.exit(guarded(lambda: app(args=arguments, prog_name="unic-pipe", standalone_mode=False), debug))


if __name__ == "__main__":
    main()
