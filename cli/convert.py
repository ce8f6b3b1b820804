"""The commands that exchange encoders with other programs: import and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import ConfigOption, SetOption, add_command, open_inventory

if TYPE_CHECKING:
    from unic_pipe.schemas.config import Scalar


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Exchanging"
    add_command(app, panel, import_, "import unic.pth unic", "import checkpoint_teacher.pth my-ibot --layout ibot")
    add_command(app, panel, export, "export main unic.pth")


def import_(
    file: Annotated[Path, typer.Argument(help="An official checkpoint.", show_default=False)],
    name: Annotated[str, typer.Argument(help="The folder will be encoders/NAME.", show_default=False)],
    layout: Annotated[
        str, typer.Option(metavar="NAME", help="Whose file it is: unic, dino, ibot, deit3 or dbot-ft.")
    ] = "unic",
    arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An argument for timm, as num_heads=2 (repeatable).", show_default=False
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pixels (default: the file's own).", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Bring an official checkpoint in as encoders/NAME, a folder that timm loads too.

    Use it as a teacher or to evaluate (checkpoint:encoders/NAME). Of a UNIC student, the ladder and the teachers'
    statistics are kept beside it, so that export gives the same file back. A file can also be used as it is, without
    import: checkpoint:FILE.
    """
    from rich.console import Console

    from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME
    from unic_pipe.schemas.base import require_name
    from unic_pipe.stages.convert import import_encoder

    require_name(name, "NAME")
    folder, weights_dir = Path.cwd(), Path("weights")
    if config is not None or Path(CONFIG_NAME).exists():
        inventory = open_inventory(config, None)
        folder, weights_dir = inventory.folder, inventory.workspace.weights_dir
    written = import_encoder(folder, weights_dir, file, name, layout, _arguments(arg or []), image_size)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Wrote [bold]{written}[/].")
    console.print(f"To use it: [bold cyan]{name}: {{encoder: checkpoint:encoders/{name}}}[/] under teachers:, or")
    console.print(f"           [bold cyan]unic-pipe evaluate --encoder {name}=encoders/{name}[/]")
    return 0


def export(
    student: Annotated[str, typer.Argument(help="A finished student, or an imported folder.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The checkpoint to write.", show_default=False)],
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


def _arguments(pairs: list[str]) -> dict[str, Scalar]:
    """`KEY=VALUE` texts, the values read as numbers or true and false where they are."""
    import json

    from unic_pipe.schemas.errors import UserError

    found: dict[str, Scalar] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--arg {pair}: expected KEY=VALUE, for instance --arg num_heads=2")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[key] = value if isinstance(value, bool | int | float | str) else text
    return found
