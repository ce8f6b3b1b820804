"""The command `config`: what is in force here, and what every field means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, print_json

if TYPE_CHECKING:
    from unic_pipe.schemas.describing import FieldText

MANY = 9
"""So many fields are not described in whole."""
EXAMPLES = ("config", "config --describe students.main.optimizer.lr", "config --schema > unic-pipe.schema.json")


def config(
    field: Annotated[
        str | None, typer.Argument(metavar="FIELD", help="One field or section, such as cache or main.optimizer.lr.")
    ] = None,
    describe: Annotated[
        bool,
        typer.Option("--describe", metavar=NO_VALUE, help="Type, default, meaning and source of FIELD, or of all."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", metavar=NO_VALUE, help="The JSON Schema of unic-pipe.yaml, for editors.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Show the configuration in force here, describe its fields, or print their schema.

    Without options it prints unic-pipe.yaml as it is understood: presets written out, --set applied. --describe needs no
    configuration.
    """
    from unic_pipe.schemas.describing import fields, json_schema, matching

    if schema:
        print_json(json_schema())
    elif describe:
        found = fields() if field is None else matching(field)
        if as_json:
            print_json({"fields": [asdict(each) for each in found]})
        else:
            _show(found)
    else:
        body = _in_force(config, overrides or (), field)
        if as_json:
            print_json({"config": body})
        else:
            _show_yaml(body)
    return 0


def _in_force(config: Path | None, overrides: Sequence[str], field: str | None) -> Any:
    """The values of a configuration, or of one field or section of it, defaults left out of sections."""
    from unic_pipe.pipeline.workspace.configuration import load_workspace
    from unic_pipe.schemas.errors import UserError, did_you_mean

    loaded = load_workspace(config, overrides).config
    if field is None:
        return loaded.model_dump(mode="json", exclude_unset=True)
    value: Any = loaded.model_dump(mode="json")
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            near = did_you_mean(part, list(value) if isinstance(value, dict) else [])
            raise UserError(
                f"{field}: the configuration has no {part!r}{near}",
                "What it may have: unic-pipe config --describe",
            )
        value = value[part]
    return value


def _show_yaml(body: Any) -> None:
    import io

    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = None, 1000, False  # type: ignore[assignment]
    yaml.dump(body, text)
    typer.echo(text.getvalue().removesuffix("...\n"), nl=False)


def _show(found: Sequence[FieldText]) -> None:
    """Fields with all that is known of them; those below the first one, and all where they are many, in a line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    whole = 1 if found[0].parent else len(found)
    for each in found[:whole] if whole < MANY else ():
        console.print(Text(each.place, "bold"))
        grid = Table.grid(padding=(0, 1))
        for head in ("kind", "default", "meaning", "source"):
            if (text := getattr(each, head)) and not (each.parent and head in ("kind", "source")):
                grid.add_row(Text(f"  {'type' if head == 'kind' else head}", "dim"), Text(text.replace("`", "")))
        console.print(grid)
    table = Table(box=None, pad_edge=False)
    for head in ("field", "default", "values"):
        table.add_column(head, overflow="fold", no_wrap=head == "field")
    for each in found if whole >= MANY else found[whole:]:
        table.add_row(Text(each.place, "bold"), Text(each.default), Text(each.kind.replace("`", ""), "dim"))
    if table.rows:
        console.print(table)
