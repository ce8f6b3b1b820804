"""The recipes of the field side by side, from one cache: one network, start, order and number of steps, three seeds.

usage: python examples/proof/recipes.py [FOLDER] [--data demo|proof] [--recipes A,B] [--rates A,B] [--seeds N] [--no-docs]

Writes images and configuration into FOLDER (`recipes/DATA`), extracts the teachers' features once, trains `distill --compare`
from them, evaluates, and puts a table into docs/recipes.md: a row for every recipe and rate, mean ± standard error over the
seeds, and what a training step takes. `--epochs` and `--rows` make it a pilot. A run that was cut off goes on; the same command
again prints the same table.
"""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from images import write_images
from settings import BENCHMARKS, TEACHERS, students, text
from specialists import write_specialists
from steady import TEACHERS as DEMO_TEACHERS
from steady import TESTED as DEMO_BENCHMARKS
from steady import write_seeds
from tables import AXES, Line, line, read_scores, table, write_between
from work import unic_pipe

from unic_pipe.pipeline.workspace.by_recipe import by_recipe
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import PILOT
from unic_pipe.stages.demo.config import IMAGES
from unic_pipe.stages.demo.data import write_samples
from unic_pipe.stages.distill.measure.cost import step_cost
from unic_pipe.stages.distill.model.schedule import peak_rate

DOCS = Path(__file__).parents[2] / "docs/recipes.md"
STUDENT = "student"


@dataclass(frozen=True)
class Data:
    """What is learned from, and what is tested."""

    teachers: Sequence[str]
    benchmarks: Sequence[str]
    axes: Sequence[str]


DATA = {
    "demo": Data(DEMO_TEACHERS, tuple(DEMO_BENCHMARKS), ("linear", "k-NN")),
    "proof": Data(TEACHERS, BENCHMARKS, tuple(AXES)),
}


def write_folder(folder: Path, data: str, seeds: tuple[int, ...]) -> None:
    """Images, weights and configuration; those that are there stay."""
    if data == "demo":
        write_seeds(folder, seeds)
        write_samples(folder / IMAGES)
        return
    write_images(folder.parent / "images")
    write_specialists(folder.parent / "images", folder.parent / "weights")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unic-pipe.yaml").write_text(text({STUDENT: students()[STUDENT]}, seeds=seeds))


def run(folder: Path, asked: argparse.Namespace, seeds: tuple[int, ...], changes: list[str]) -> float:
    """All that the table needs; seconds of the trainings of this time, a seed a process, one thread each."""
    rows = [] if asked.rows is None else ["--rows", asked.rows]
    write_folder(folder, asked.data, seeds)
    unic_pipe(folder, "index")
    unic_pipe(folder, "extract", *rows)
    compared = ["--compare", asked.recipes, "--rates", asked.rates, "--set", "distill.threads=1", *changes, *rows]
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda seed: unic_pipe(folder, "distill", *compared, "--student", f"{STUDENT}-{seed}"), seeds))
    seconds = time.perf_counter() - begin
    unic_pipe(folder, "evaluate")
    return seconds


def recipe_lines(folder: Path, asked: argparse.Namespace, seeds: tuple[int, ...], overrides: list[str]) -> list[Line]:
    """A row for every teacher, and for every recipe and rate with its peak rate and what a step takes."""
    workspace, data = load_workspace(folder, overrides), DATA[asked.data]
    found, pilot = read_scores(folder), "" if asked.rows is None else PILOT
    recipes, rates = asked.recipes.split(","), asked.rates.split(",")
    by_seed = [by_recipe(workspace.config, f"{STUDENT}-{seed}", recipes, rates) for seed in seeds]
    inventory = Inventory(workspace).with_students({n: s for made in by_seed for n, s in made.items()})
    lines = [line(name, found, name) for name in data.teachers]
    for trained in zip(*by_seed, strict=True):
        definition = inventory.student_definition(trained[0])
        assert definition is not None, "indexed before"
        step, peak = step_cost(definition, "cpu").seconds, peak_rate(definition.config.optimizer)
        title = trained[0].removeprefix(f"{STUDENT}-{seeds[0]}-")
        scores = [found[name + pilot] for name in trained if name + pilot in found]
        lines.append(Line(f"{title} (peak {peak:.2g}, {1000 * step:.0f} ms a step)", scores))
    return lines


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data", choices=list(DATA), default="demo")
    parser.add_argument("--recipes", default="unic,am-radio,phi-s,theia")
    parser.add_argument("--rates", default="published,unic")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rows")
    parser.add_argument("--no-docs", action="store_true", help="print the table and leave docs/recipes.md as it is")
    asked = parser.parse_args()
    folder, data = (asked.folder or Path("recipes") / asked.data).resolve(), DATA[asked.data]
    seeds = tuple(range(asked.seeds))
    overrides = [f"students.{STUDENT}.optimizer.epochs={asked.epochs}"] if asked.epochs else []
    seconds = run(folder, asked, seeds, [word for one in overrides for word in ("--set", one)])
    made = table(recipe_lines(folder, asked, seeds, overrides), data.benchmarks, data.axes)
    print(made)
    print(
        f"\nThe trainings took {seconds:.0f} s this time, all together; a step is of one student alone, on a batch of 32."
    )
    if not asked.no_docs and asked.rows is None and asked.epochs is None:
        write_between(DOCS, asked.data, made)


if __name__ == "__main__":
    main()
