"""The command `verify`."""

from typing import Annotated

import typer

from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    SetOption,
    open_inventory,
    print_json,
)

EXAMPLES = ("verify", "verify --quick", "verify --live 64", "verify --read-only --json", "verify --seal")


def verify(
    as_json: JsonOption = False,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", metavar=NO_VALUE, help="Only report; set nothing aside for repair."),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", metavar=NO_VALUE, help="Documents and sizes only; features and weights are not read."),
    ] = False,
    live: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also run every teacher again on N random samples and compare.")
    ] = 0,
    seal: Annotated[
        bool,
        typer.Option(
            "--seal",
            metavar=NO_VALUE,
            help="Add a checksum to files of older versions, which have none, as they are now.",
        ),
    ] = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Check that every file is what was written: indexes, features, students, results.

    --live finds what no hash can: a cache that was made by other weights or pixels than it says.

    Exit code 1 if anything is damaged. Damaged units of a feature cache are set aside, so that the next extract makes
    exactly those again.
    """
    from rich.console import Console

    from unic_pipe.cli.show.verify import verify_lines
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.stages.verify import VerifyOptions
    from unic_pipe.stages.verify import verify as verify_stage

    inventory = open_inventory(config, overrides)
    options = VerifyOptions(read_only, quick, live, device or inventory.config.compute.device, seal)
    report, hint = verify_stage(inventory, options, ConsoleReporter())
    if as_json:
        asked = {"live", "skipped"} if live else set()
        empty = {
            name
            for name in ("live", "skipped", "unsealed", "sealed", "quick", "leftovers")
            if not getattr(report, name)
        }
        print_json(report.model_dump(mode="json", exclude=empty - asked))
    else:
        console = Console(highlight=False)
        console.print(verify_lines(report))
        if hint:
            console.print(f"Next: [bold cyan]{hint}[/]")
    return 0 if report.ok else 1
