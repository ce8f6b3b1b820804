"""The recipes of the field side by side, on the demo's data: one network, start, order and number of steps, three seeds.

usage: python examples/proof/recipes.py [FOLDER] [--recipes A,B] [--rates A,B] [--epochs N] [--rows N]

Writes the demo's data and configuration into FOLDER, extracts its teachers' features once, trains `distill --compare` from them
with `seeds: [0, 1, 2]`, evaluates, and prints a Markdown table: a row for every recipe and rate, linear top-1 as mean ± standard
error over the seeds, and what a training step takes. `--epochs` shortens the trainings, `--rows` the data (a pilot). A run
that was cut off goes on; the same command again prints the same table.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

from steady import SEEDS, scores, write_seeds

from unic_pipe.pipeline.workspace.by_recipe import by_recipe
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import PILOT
from unic_pipe.stages.demo.config import IMAGES
from unic_pipe.stages.demo.data import write_samples
from unic_pipe.stages.distill.measure.cost import step_cost
from unic_pipe.stages.distill.model.schedule import peak_rate

STUDENT, TEACHERS = "student", ("generalist", "digit-expert")


def unic_pipe(folder: Path, command: str, *more: str) -> None:
    """Type a command in the folder."""
    words = [sys.executable, "-m", "unic_pipe.cli.main", command, "--config", str(folder), *more]
    subprocess.run(words, check=True)


def run(folder: Path, recipes: str, rates: str, changes: list[str], rows: list[str]) -> float:
    """All that the table needs; seconds of the trainings of this time."""
    write_seeds(folder)
    write_samples(folder / IMAGES)
    unic_pipe(folder, "index")
    unic_pipe(folder, "extract", *rows)
    begin = time.perf_counter()
    unic_pipe(folder, "distill", "--compare", recipes, "--rates", rates, "--student", STUDENT, *changes, *rows)
    seconds = time.perf_counter() - begin
    unic_pipe(folder, "evaluate")
    return seconds


def spread(values: list[float]) -> str:
    """Mean ± standard error, in per cent."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{100 * mean(values):.1f} ± {100 * error:.1f}"


def table(folder: Path, recipes: list[str], rates: list[str], overrides: list[str], pilot: str) -> list[str]:
    """The table's lines."""
    workspace = load_workspace(folder, overrides)
    config, found = workspace.config, scores(folder)
    benchmarks = list(config.evaluate.benchmarks)
    head = f"| recipe | peak rate | {' | '.join(benchmarks)} | mean | a step |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name in TEACHERS:
        values = [found[name][b][0] for b in benchmarks]
        lines.append(f"| {name} | | {' | '.join(f'{100 * v:.1f}' for v in [*values, mean(values)])} | |")
    by_seed = [by_recipe(config, f"{STUDENT}-{seed}", recipes, rates) for seed in SEEDS]
    inventory = Inventory(workspace).with_students({n: s for made in by_seed for n, s in made.items()})
    for names in zip(*by_seed, strict=True):
        rows = [[found[name + pilot][b][0] for b in benchmarks] for name in names]
        cells = [spread([row[i] for row in rows]) for i in range(len(benchmarks))]
        cells.append(spread([mean(row) for row in rows]))
        definition = inventory.student_definition(names[0])
        assert definition is not None, "indexed before"
        seconds = step_cost(definition, "cpu").seconds
        recipe, peak = names[0].removeprefix(f"{STUDENT}-{SEEDS[0]}-"), peak_rate(definition.config.optimizer)
        lines.append(f"| {recipe} | {peak:.2g} | {' | '.join(cells)} | {1000 * seconds:.0f} ms |")
    return lines


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("recipes"))
    parser.add_argument("--recipes", default="unic,am-radio,phi-s,theia")
    parser.add_argument("--rates", default="published,unic,own")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rows")
    asked = parser.parse_args()
    overrides = [] if asked.epochs is None else [f"students.{STUDENT}.optimizer.epochs={asked.epochs}"]
    rows = [] if asked.rows is None else ["--rows", asked.rows]
    changes = [word for override in overrides for word in ("--set", override)]
    seconds = run(asked.folder, asked.recipes, asked.rates, changes, rows)
    recipes, rates = asked.recipes.split(","), asked.rates.split(",")
    lines = table(asked.folder, recipes, rates, overrides, "" if asked.rows is None else PILOT)
    print("\n".join(lines))
    print(f"\nThe trainings took {seconds:.0f} s this time, all together; a step is of one student alone.")


if __name__ == "__main__":
    main()
