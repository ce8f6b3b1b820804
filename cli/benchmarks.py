"""Showing and downloading benchmarks that have a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.completing import benchmarks as complete
from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json

if TYPE_CHECKING:
    from rich.text import Text

    from unic_pipe.pipeline.benchmarks.catalogue import BenchmarkRow


EXAMPLES = ("benchmarks", "benchmarks dtd pets", "benchmarks dtd --download", "benchmarks nyud --unpack")


def benchmarks(
    names: Annotated[list[str] | None, typer.Argument(help="Which (default: all).", autocompletion=complete)] = None,
    download: Annotated[
        bool,
        typer.Option("--download", metavar=NO_VALUE, help="Download the named ones, where torchvision can."),
    ] = False,
    unpack: Annotated[
        bool,
        typer.Option("--unpack", metavar=NO_VALUE, help="Turn nyud's MATLAB files into folders of images and maps."),
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """List the benchmarks that unic-pipe knows: sizes, metric, probe, and what of each is here; of named ones all else.

    To use them, name them under evaluate.benchmarks in unic-pipe.yaml. Nothing is downloaded unless you ask for it.
    """
    from unic_pipe.pipeline.benchmarks.catalogue import catalogue
    from unic_pipe.pipeline.benchmarks.catalogue import download as fetch
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME
    from unic_pipe.schemas.config import EvaluateConfig
    from unic_pipe.schemas.errors import UserError

    settings, folder = EvaluateConfig(), Path.cwd()
    if config is not None or overrides or Path(CONFIG_NAME).exists():
        inventory = open_inventory(config, overrides)
        settings, folder = inventory.config.evaluate, inventory.folder
    rows = catalogue(settings, folder, names or ())
    if download:
        if not names:
            raise UserError("Which benchmarks are to be downloaded?", "unic-pipe benchmarks dtd pets --download")
        for row in rows:
            fetch(row, ConsoleReporter().say)
        rows = catalogue(settings, folder, names)
    if unpack:
        return _unpack(rows)
    if as_json:
        print_json({"benchmarks": [_as_dict(row) for row in rows]})
    else:
        _print(rows, detailed=bool(names))
    return 0


def _unpack(rows: list[BenchmarkRow]) -> int:
    """Unpack NYU Depth v2 beside its files, and say how it is evaluated."""
    from unic_pipe.pipeline.benchmarks.nyud import CONFIGURATION, unpack_nyud
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.schemas.errors import UserError

    if [row.name for row in rows] != ["nyud"]:
        raise UserError("Only nyud is unpacked; the others are read as they are.", "unic-pipe benchmarks nyud --unpack")
    folder, card = rows[0].places[0].require(), rows[0].card
    labelled, splits = (folder / file for file in card.needs_train)
    with ConsoleReporter().task("unpack nyud", total=(card.train or 0) + card.test, unit="pairs") as task:
        unpack_nyud(labelled, splits, folder / "unpacked", lambda done: task.advance())
    typer.echo(CONFIGURATION.format(folder=(folder / "unpacked").absolute()), nl=False)
    return 0


def _as_dict(row: BenchmarkRow) -> dict[str, object]:
    card = row.card
    return {
        "name": row.name,
        **card.model_dump(mode="json", exclude={"reader", "folders", "needs_train", "needs_test", "torchvision"}),
        "download": card.torchvision is not None,
        "configured": row.configured,
        "datasets": list(row.given),
        "here": row.here,
        "folder": str(row.folder) if row.folder is not None else None,
        "missing": {split: list(files) for split, files in row.missing.items()},
        "searched": str(row.base),
    }


def _print(rows: list[BenchmarkRow], detailed: bool) -> None:
    """A table; below it what is missing of the configured or named ones, with where to get it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("", "benchmark", "axis", "train", "test", "metric", "probe"):
        table.add_column(title, justify="right" if title in ("train", "test") else "left", no_wrap=True)
    for row in rows:
        mark = Text("✔", "green") if row.here else Text("·", "yellow" if row.configured else "dim")
        card = row.card
        train = f"{card.train:,}" if card.train is not None else "–"
        probe = "that of in1k" if card.kind == "transfer" else card.classifier
        metric = {"per_class": "per class", "miou": "mIoU", "rmse": "RMSE"}.get(card.metric, "top-1")
        table.add_row(mark, Text(row.name, "bold"), card.axis, train, f"{card.test:,}", metric, probe)
    console.print(table)
    console.print()
    for row in rows:
        if detailed or row.configured:
            console.print(
                Text.assemble((row.name, "bold"), f"  {row.card.title}, {row.card.paper}; {row.card.splits}"),
                soft_wrap=True,
            )
            for line in _details(row):
                console.print(Text("  ") + line, soft_wrap=True)
    if not detailed:
        console.print(Text.assemble("Licence, source and files of one: ", ("unic-pipe benchmarks NAME", "cyan")))
        console.print(
            Text.assemble(
                "To run some: ", ("evaluate: {benchmarks: [dtd, pets], root: FOLDER}", "cyan"), " in unic-pipe.yaml"
            )
        )


def _details(row: BenchmarkRow) -> list[Text]:
    from rich.text import Text

    lines = [Text(f"licence, as its source had it (look there yourself): {row.card.licence}")]
    if row.given:
        lines.append(Text(f"read from your datasets {', '.join(row.given)}", "dim"))
    for place in row.places:
        if not place.missing:
            lines.append(Text(f"{place.split}: {place.folder}", "green"))
        else:
            lines.append(Text(f"{place.split}: not in {place.folder}: {place.lacks}", "yellow"))
    if not row.here:
        lines.append(Text(f"get {row.card.get}: {row.card.source}"))
        if row.card.torchvision is not None:
            lines.append(Text(f"or: unic-pipe benchmarks {row.name} --download", "cyan"))
    if row.here and row.name == "nyud":
        lines.append(Text("to evaluate on it: unic-pipe benchmarks nyud --unpack", "cyan"))
    if row.card.note:
        lines.append(Text(row.card.note, "dim"))
    return lines
