"""The command `export`."""

from pathlib import Path
from typing import Annotated

import typer

from unic_pipe.cli.options import ConfigOption, SetOption, open_inventory

EXAMPLES = ("export main unic.pth",)


def export(
    student: Annotated[str, typer.Argument(help="A finished student, or an imported folder.")],
    file: Annotated[Path, typer.Argument(help="The checkpoint to write.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Write a finished student as an official UNIC checkpoint: encoder, ladder and teachers' statistics.

    The authors' code loads it. For timm, use the folder students/NAME/export as it is.
    """
    from rich.console import Console

    from unic_pipe.schemas.errors import UserError, did_you_mean
    from unic_pipe.stages.convert import export_imported, export_official

    if (Path(student) / "config.json").is_file():
        written = export_imported(Path(student), file)
    else:
        finished = open_inventory(config, overrides).finished_students
        if student not in finished:
            known = did_you_mean(student, list(finished))
            raise UserError(f"No finished student is named {student!r}{known}", "To see all: unic-pipe status")
        written = export_official(finished[student], file)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Wrote [bold]{written.path}[/].")
    for remark in written.remarks:
        console.print(f"Note: {remark}.")
    return 0
