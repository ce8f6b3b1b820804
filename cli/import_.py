"""The command `import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import ConfigOption, JsonOption, open_inventory, print_json
from unic_pipe.schemas.printed import WrittenReport

if TYPE_CHECKING:
    from unic_pipe.schemas.config import Scalar


EXAMPLES = ("import unic.pth unic", "import checkpoint_teacher.pth my-ibot --layout ibot")


def import_(
    file: Annotated[Path, typer.Argument(help="An official checkpoint.")],
    name: Annotated[str, typer.Argument(help="The folder will be encoders/NAME.")],
    layout: Annotated[
        str, typer.Option(metavar="NAME", help="Whose file it is: unic, dino, ibot, deit3 or dbot-ft.")
    ] = "unic",
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument for timm, as num_heads=2 (repeatable)."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pixels (default: the file's own).")
    ] = None,
    as_json: JsonOption = False,
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
    if as_json:
        print_json(WrittenReport(paths=(str((folder / written).absolute()),)))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Wrote [bold]{written}[/].")
    console.print(f"To use it: [bold cyan]{name}: {{encoder: checkpoint:encoders/{name}}}[/] under teachers:, or")
    console.print(f"           [bold cyan]unic-pipe evaluate --encoder {name}=encoders/{name}[/]")
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
