"""The command `distill`: training in one process, or in several that train together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from unic_pipe.cli.completing import students
from unic_pipe.cli.options import (
    NO_VALUE,
    ConfigOption,
    DeviceOption,
    RestartOption,
    RowsOption,
    SetOption,
    StateOption,
    open_inventory,
)
from unic_pipe.cli.running import LOOKING, say_lacking, staged
from unic_pipe.cli.status import print_state

if TYPE_CHECKING:
    from unic_pipe.pipeline.loggers import Tell
    from unic_pipe.pipeline.process.progress import Reporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.stages.distill.parallel.members import Member
    from unic_pipe.stages.distill.parallel.world import World
    from unic_pipe.stages.distill.stage import Variants


EXAMPLES = (
    "distill",
    "distill --student hot --set students.main.optimizer.lr=1e-3",
    "distill --ablation",
    "distill --compare unic,am-radio,phi-s,theia",
    "distill --devices 8",
)

RATES = "published,unic"
"""At which rates recipes are compared unless it is said."""


StudentsOption = Annotated[
    list[str] | None,
    typer.Option("--student", "-s", metavar="NAME", help="Which (repeatable; default: all).", autocompletion=students),
]
AblationOption = Annotated[
    bool,
    typer.Option(
        "--ablation",
        metavar=NO_VALUE,
        help="Train the paper's variants of one student: basic, + standardization, + ladder, + teacher dropping.",
    ),
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="A,B,...",
        help="Train one student by these recipes (unic, am-radio, phi-s, theia ...: docs/recipes.md), as NAME-RECIPE: "
        "loss, heads and rate are the recipe's, all else the student's.",
    ),
]
RatesOption = Annotated[
    str | None,
    typer.Option(
        "--rates",
        metavar="A,B,...",
        show_default=RATES,
        help="Of --compare, a student for each: published (the recipe's rate, scaled to the batch), unic "
        "(NAME-RECIPE-unic-rate: UNIC's), own (NAME-RECIPE-own-rate: the configured one).",
    ),
]
LiveTeachersOption = Annotated[
    bool,
    typer.Option(
        "--live-teachers",
        metavar=NO_VALUE,
        help="The reference, NAME-live: teachers run in the loop, on a fresh view every epoch.",
    ),
]
DevicesOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Train in N processes of this machine: one per GPU, or on the CPU.")
]
LiveCheckOption = Annotated[
    bool,
    typer.Option(
        "--live-check/--no-live-check", metavar=NO_VALUE, help="First compare a few cached features with a fresh pass."
    ),
]


def distill(
    student: StudentsOption = None,
    ablation: AblationOption = False,
    compare: CompareOption = None,
    rates: RatesOption = None,
    live_teachers: LiveTeachersOption = False,
    rows: RowsOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = 1,
    restart: RestartOption = False,
    live_check: LiveCheckOption = True,
    as_json: StateOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> int:
    """Train students against the cached features of their teachers.

    Students that agree in samples, batch size and seed (or order_seed) train in one pass over the cache. Each goes on
    from its newest checkpoint, and gets the same bits as alone and never stopped. A --student that is not in the
    configuration trains the settings of the only one that is, under the new name; one with seeds stands for all of its
    students. On several machines start this with torchrun: whatever the number of processes, if it divides a student's
    streams, they see the same batches, and resume each other's.
    """
    from unic_pipe.stages.distill.parallel.members import member, refuse_uneven

    variants = variants_of(ablation, compare, rates)
    inventory = open_inventory(config, overrides, rows)
    if live_teachers:
        inventory = inventory.with_live_teachers()
    this = member()
    if devices > 1 and this is None:
        students = inventory.config.students
        refuse_uneven({name: students[name] for name in student or students if name in students}, devices)
        return launched(devices)

    def work(reporter: Reporter, stop: Stop) -> None:
        reporter.say(LOOKING)
        from unic_pipe.stages.distill.parallel.world import joined

        with joined(this, stop, inventory.config.distill.timeout_minutes) as world:
            distill_step(
                inventory, student or (), device, restart, reporter, stop, world,
                variants=variants, live_check=live_check,
            )  # fmt: skip

    if this is not None:
        code = one_of_several(inventory, this, work)
    else:
        with staged(inventory, "distill") as (reporter, stop):
            work(reporter, stop)
        code = stop.exit_code
    print_state(as_json and (this is None or this.rank == 0), inventory, rows)
    return code


def distill_step(
    inventory: Inventory,
    students: Sequence[str],
    device: str | None,
    restart: bool,
    reporter: Reporter,
    stop: Stop,
    world: World | None = None,
    *,
    variants: tuple[str, Variants] | None = None,
    live_check: bool = True,
    tell: Tell | None = None,
) -> None:
    """Train the named students (none named: all), or the variants of one, together where they can be.

    `world`: the processes that do this together. `variants`: the option that asks for them, and what makes them. `tell`:
    a function that gets what loggers get.
    """
    from unic_pipe.pipeline.loggers import wanted_loggers
    from unic_pipe.pipeline.workspace.status import training_datasets
    from unic_pipe.stages.distill.parallel.world import Context, World
    from unic_pipe.stages.distill.stage import distill_students, named_students, refuse_variants, with_variants
    from unic_pipe.stages.indexing import index as index_stage

    named = [each for name in students for each in inventory.workspace.seeded.get(name, (name,))]
    chosen = named_students(inventory, named)
    names = tuple(named or chosen.config.students)
    if variants is not None:
        chosen, names = with_variants(chosen, names, variants[1], variants[0])
    world = world or World()
    context = Context(reporter, stop, world, wanted_loggers(chosen.config.loggers, tell) if world.first else {})
    with world.in_turn():
        index_stage(chosen, training_datasets(chosen), reporter, stop)
        if variants is not None:
            refuse_variants(chosen, names)
            say_rates(chosen, names, reporter)
    say_lacking(chosen, reporter)
    on = device or chosen.config.compute.device
    distill_students(chosen, names, context, device=on, restart=restart, live_check=live_check)


def variants_of(ablation: bool, compare: str | None, rates: str | None) -> tuple[str, Variants] | None:
    """The option that asks for variants of a student, and what makes them.

    Raises:
        UserError: options that do not go together, or no recipe or rate has such a name.
    """
    from functools import partial

    from unic_pipe.pipeline.workspace.ablation import ablation as of_the_paper
    from unic_pipe.pipeline.workspace.by_recipe import by_recipe, require_known
    from unic_pipe.schemas.errors import UserError

    if ablation and compare is not None:
        raise UserError("--ablation and --compare each take a student of their own.", "Type one command for each.")
    if compare is None:
        if rates is not None:
            raise UserError("--rates is about recipes that are compared.", "Add --compare unic,am-radio,phi-s,theia")
        return ("--ablation", of_the_paper) if ablation else None
    texts = (compare, RATES if rates is None else rates)
    recipes, wanted = ([word.strip() for word in text.split(",") if word.strip()] for text in texts)
    require_known(recipes, wanted)
    return f"--compare {compare}", partial(by_recipe, recipes=recipes, rates=wanted)


def say_rates(inventory: Inventory, names: Sequence[str], reporter: Reporter) -> None:
    """Say at which peak rate each student is trained."""
    from unic_pipe.stages.distill.model.schedule import peak_rate

    peaks = [f"{name} {peak_rate(inventory.config.students[name].optimizer):.2g}" for name in names]
    reporter.say(f"Peak rates, for this batch: {', '.join(peaks)}.")


def launched(count: int) -> int:
    """Run this very command in `count` processes that train together; the exit code."""
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.stages.distill.parallel.members import launch

    with Stop() as stop:
        return launch(count, sys.argv[1:], stop)


def one_of_several(inventory: Inventory, this: Member, work: Callable[[Reporter, Stop], None]) -> int:
    """Run a stage as one of the processes that do it together: the first one speaks and writes, the others are silent."""
    from unic_pipe.pipeline.process.progress import SilentReporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.stages.distill.parallel.members import Elsewhere

    try:
        if this.rank == 0:
            with staged(inventory, "distill") as (reporter, stop):
                work(reporter, stop)
            return stop.exit_code
        with Stop() as stop:
            work(SilentReporter(), stop)
        return stop.exit_code if stop.requested else 0
    except Elsewhere as error:
        return error.exit_code
