"""The `unic-pipe` command."""

import gc as cycles
import os
import sys
from typing import Annotated

import typer

from unic_pipe.cli import (
    bench,
    benchmarks,
    config,
    demo,
    distill,
    doctor,
    embed,
    evaluate,
    export,
    extract,
    gc,
    import_,
    index,
    init,
    pack,
    plan,
    report,
    run,
    status,
    teachers,
    verify,
)  # fmt: skip
from unic_pipe.cli.errors import guarded, require_streams
from unic_pipe.cli.options import NO_VALUE, add_command
from unic_pipe.pipeline.process.memory import share_one_heap
from unic_pipe.pipeline.process.progress import QUIET
from unic_pipe.schemas.base import PROGRAM_VERSION

app = typer.Typer(
    name="unic-pipe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""Exit codes: 0 done (or stopped by SIGTERM), 1 failed, 2 the input is wrong, 130 Ctrl-C.
With any command, --quiet leaves only results and errors, --debug shows tracebacks. Machines read --json.""",
)
PANELS = {
    "Beginning": (demo.demo, init.init, pack.pack),
    "Stages": (run.run, index.index, extract.extract, distill.distill, evaluate.evaluate),
    "Looking": (
        status.status, config.config, plan.plan, verify.verify, gc.gc, teachers.teachers, doctor.doctor,
        benchmarks.benchmarks, bench.bench,
    ),
    "Exchanging": (embed.embed, import_.import_, export.export),
}  # fmt: skip
"""The commands, as `--help` groups them. Each has a module of its name, with `EXAMPLES` of what to type."""
for panel, commands in PANELS.items():
    for command in commands:
        add_command(app, panel, command, *sys.modules[command.__module__].EXAMPLES)
report.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unic-pipe {PROGRAM_VERSION}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", metavar=NO_VALUE, help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Distil several frozen vision encoders into one student, from a cache that pays for each teacher once.

    samples → [bold]extract[/] → feature cache → [bold]distill[/] → student → [bold]evaluate[/] → report

    To see it work:     [cyan]unic-pipe demo[/]   (5 minutes on two CPU cores)
    With your images:   [cyan]unic-pipe init --data PATH[/]
                        [cyan]unic-pipe run[/]
    What is there:      [cyan]unic-pipe status[/]

    Every step can be stopped and run again: it goes on from what is finished.
    """


def main() -> None:
    """Entry point of the console script."""
    require_streams()
    # Before there are threads, and OpenMP, which reads it when it is loaded: those that wait sleep instead of spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    share_one_heap()
    cycles.set_threshold(20_000, 20, 20)  # PyTorch's modules are a million objects, none of them garbage
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if "--quiet" in arguments:
        os.environ[QUIET] = "1"
    arguments = [a for a in arguments if a not in ("--debug", "--quiet")]
    code = guarded(lambda: app(args=arguments, prog_name="unic-pipe", standalone_mode=False), debug)
    cycles.freeze()  # taking these modules apart, one search for cycles after the other, would take seconds
    sys.exit(code)


if __name__ == "__main__":
    main()
