"""The command `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unic_pipe.cli.completing import students
from unic_pipe.cli.options import NO_VALUE, ConfigOption, JsonOption, SetOption, open_inventory, print_json
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.printed import WrittenReport

if TYPE_CHECKING:
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.workspace.inventory import Inventory

EXAMPLES = (
    "export main --to timm",
    "export main main.onnx --to onnx",
    "export main --push hf:USER/main",
    "export main unic.pth",
)
Format = Literal["timm", "onnx", "torch-export", "unic"]
ENDINGS: dict[Format, str] = {"timm": "-timm", "onnx": ".onnx", "torch-export": ".pt2", "unic": ".pth"}
"""The formats, and how the names end that targets have by default."""
_TRACE = "making a graph of the network, and comparing its values with PyTorch's; this may take a minute"
_ABOUT: dict[Format, str] = {
    "timm": "reading the student, and writing its folder with a model card",
    "onnx": _TRACE,
    "torch-export": _TRACE,
}


@dataclass(frozen=True)
class Written:
    """What an export made."""

    path: Path | None
    """None: it was only pushed."""
    address: str | None
    """Of the repository that it was pushed to."""
    remarks: tuple[str, ...]


def export(
    student: Annotated[
        str,
        typer.Argument(
            help="A finished student, or the folder of an exported or imported one.", autocompletion=students
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|FOLDER", help="What to write.", show_default="the student's name, with the format's ending"
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="timm: a folder with a model card; onnx, torch-export: a graph with cls and patch tokens; unic: for the"
            " authors' code.",
            show_default="unic where a file is named, timm with --push",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="hf:USER/NAME", help="Upload timm's folder to the Hugging Face hub.")
    ] = None,
    no_adaptors: Annotated[
        bool,
        typer.Option(
            "--no-adaptors",
            metavar=NO_VALUE,
            help="Leave out adaptors.safetensors, the heads that predict the teachers' features.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar=NO_VALUE, help="Replace what is there.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Write a finished student for other programs.

    Graphs take batches of any size, and are compared with PyTorch before they appear. The model card says what the student
    is, whose licences it is under, how it was trained and how good it is. Nothing but --push touches the network.
    """
    from rich.console import Console

    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME

    alone = config is None and not Path(CONFIG_NAME).is_file() and (Path(student) / "config.json").is_file()
    inventory = None if alone else open_inventory(config, overrides)
    written = export_step(student, target, to, push, overwrite, inventory, ConsoleReporter(), not no_adaptors)
    if as_json:
        paths = [str(written.path.absolute())] if written.path is not None else []
        paths += [written.address] if written.address is not None else []
        print_json(WrittenReport(paths=tuple(paths), remarks=written.remarks))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    if written.path is not None:
        console.print(f"Wrote [bold]{written.path}[/].")
    if written.address is not None:
        console.print(f"Pushed to [bold]{written.address}[/].")
    for remark in written.remarks:
        console.print(f"Note: {remark}.")
    return 0


def export_step(
    student: str,
    target: Path | None,
    to: str | None,
    push: str | None,
    overwrite: bool,
    inventory: Inventory | None,
    reporter: Reporter,
    adaptors: bool = True,
) -> Written:
    """Find the student and write it; what was made. `inventory`: where names of students are looked up."""
    form = _format(student, target, to, push)
    from unic_pipe.stages.export.subject import find, name_of

    found = find(student, inventory)
    file = (target or Path(name_of(found) + ENDINGS[form])).expanduser()
    if form == "unic":
        from unic_pipe.stages.convert import export_imported, export_official

        official = (
            export_imported(found, file, overwrite)
            if isinstance(found, Path)
            else export_official(found, file, overwrite)
        )
        return Written(official.path, None, official.remarks)
    reporter.say(f"{form}: {_ABOUT[form]}")
    from unic_pipe.stages.export.stage import check, export_folder, export_graph
    from unic_pipe.stages.export.subject import subject

    if push is None:
        check(form, file, overwrite)
        it = subject(found, inventory)
        if form == "timm":
            return Written(file, None, _about_folder(export_folder(it, file, overwrite, adaptors), file))
        difference = export_graph(it, form, file, overwrite)
        remark = f"differ from PyTorch's by at most {difference:.1e}" if difference else "are PyTorch's"
        return Written(file, None, (f"its values {remark}",))
    from unic_pipe.stages.export.push import Hub, push_folder, repository

    name = repository(push)
    if target is not None:
        check(form, file, overwrite)
    hub = Hub(
        name, f"unic-pipe export {student} {file} --to timm; then, where there is a network: hf upload {name} {file}"
    )
    reporter.say(f"uploading to {push}")
    address, licence = push_folder(hub, subject(found, inventory), target and file, overwrite, adaptors)
    return Written(target and file, address, _about_folder(licence, target and file))


def _about_folder(licence: str, folder: Path | None) -> tuple[str, ...]:
    """What to know of timm's folder: the size of what timm does not read, and whether there is no licence."""
    from unic_pipe.pipeline.process.progress import human_bytes
    from unic_pipe.pipeline.students.adaptors import FILE

    found = ("its licence is unknown; README.md says why",) if licence == "unknown" else ()
    heads = folder / FILE if folder is not None else None
    if heads is None or not heads.is_file():
        return found
    what = f"{human_bytes(heads.stat().st_size)} of it are {FILE}, which only adapt() reads; without: --no-adaptors"
    return (what, *found)


def _format(student: str, target: Path | None, to: str | None, push: str | None) -> Format:
    """The format that is asked for. Raises UserError: none, an unknown one, or one that does not go with the rest."""
    asked = next((each for each in ENDINGS if each == to), None)
    if to is not None and asked is None:
        raise UserError(f"--to {to}: there is no such format{did_you_mean(to, list(ENDINGS))}")
    if push is not None:
        if asked not in (None, "timm"):
            raise UserError(
                f"--push uploads timm's folder, not --to {to}.", "Leave out --to, or upload the file by hand."
            )
        return "timm"
    if asked is None and target is None:
        others = ", ".join(list(ENDINGS)[1:])
        raise UserError("Which format?", f"unic-pipe export {student} --to timm (or {others})")
    meant = next((each for each, end in ENDINGS.items() if target is not None and target.suffix == end), "unic")
    if asked is None and meant != "unic":
        raise UserError(
            f"{target} has the ending of another format.", f"unic-pipe export {student} {target} --to {meant}"
        )
    return asked or "unic"
