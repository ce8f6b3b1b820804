"""The command `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from unic_pipe.cli.running import LOOKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unic_pipe.schemas.config import EvaluateConfig
    from unic_pipe.stages.bench.run import Parts

PAGE = "bench.html"


EXAMPLES = ("bench --quick", "bench --against --student main --repeats 9")


def bench(
    student: Annotated[
        str | None,
        typer.Option("--student", "-s", metavar="NAME", help="Which (default: the first)."),
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Repetitions; the median is shown.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", metavar=NO_VALUE, help="A first look: little work, two repetitions.")
    ] = False,
    against: Annotated[
        bool, typer.Option("--against", metavar=NO_VALUE, help="In turns with the loops that one would write instead.")
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="N|N%", help="Measure on the first blocks only, for instance 1% or 5000."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Measure where the time goes on this machine with your samples, and what limits.

    Extraction and distillation run as they do for you, over the first blocks, in turns with their pieces alone: reading,
    decoding, views, forward passes, codec, disk, student step. The ratio of what the pieces allow to what the stage
    takes is its efficiency. --against adds plain loops over the same images and models, and other probes. Nothing is
    left in features/ or students/; runs/bench.html has the picture.
    """
    from rich.console import Console

    from unic_pipe.cli.show.bench import bench_lines
    from unic_pipe.pipeline.process.progress import ConsoleReporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.storage import LocalStore
    from unic_pipe.stages.bench.page import page
    from unic_pipe.stages.bench.run import BenchOptions, chosen_student, measured_dataset
    from unic_pipe.stages.bench.run import bench as bench_stage
    from unic_pipe.stages.indexing import index as index_stage

    inventory = open_inventory(config, overrides, rows)
    reporter = ConsoleReporter()
    dataset = measured_dataset(inventory, chosen_student(inventory, student))
    options = BenchOptions(device or inventory.config.compute.device, student, repeats, quick, against)
    with Stop() as stop:
        reporter.say(LOOKING)
        index_stage(inventory, [dataset], reporter, stop)
        report = None if stop.requested else bench_stage(inventory, options, _parts(), reporter, stop)
    if report is None:
        return stop.exit_code
    runs = LocalStore(inventory.folder / "runs")
    runs.put(PAGE, page(report))
    if as_json:
        print_json(report)
    else:
        Console(highlight=False).print(bench_lines(report))
    reporter.say(f"picture: {runs.path(PAGE)}")
    return 0


def _parts() -> Parts:
    """What the bench borrows from other stages."""
    from unic_pipe.stages.bench.run import Parts
    from unic_pipe.stages.distill.measure.bench import PIECES, StudentBench
    from unic_pipe.stages.evaluate.logistic import Probe
    from unic_pipe.stages.evaluate.paths import FastProbe

    def search(x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], config: EvaluateConfig, device: str) -> None:
        probe = FastProbe(x_ND, labels_N, device)
        probe.fit(probe.search(config.validation_fraction, 0, config.c_range, config.c_values).c)

    return Parts(StudentBench, PIECES, lambda x_ND, labels_N: Probe(x_ND, labels_N).fit(1.0), search)
