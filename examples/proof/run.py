"""Does one student keep the best of every teacher? The tables of docs/proof.md, from real images and real weights.

    make proof        the main table, a student of each teacher alone, and the paper's variants: 24 trainings
    make proof-more   views, bits per value, the number of teachers and the cache's cost; stopped, it goes on

usage: python examples/proof/run.py [FOLDER] [--more] [--only TABLE ...] [--gpu] [--epochs N] [--seeds N] [--no-docs]

Everything of one setting comes from one cache below FOLDER (`proof`). `--gpu` uses larger images and more epochs.
"""

import argparse
import datetime
import os
import platform
from pathlib import Path

import torch
from images import write_images
from more import MORE
from settings import BENCHMARKS, SEEDS, STEPS, TEACHERS, students, text
from specialists import write_specialists
from tables import Line, best_of, line, mean_of, read_scores, table, write_between
from together import concatenated
from work import Took, work

DOCS = Path(__file__).parents[2] / "docs/proof.md"
GPU = {"size": 96, "epochs": 10}


def main_lines(folder: Path, seeds: tuple[int, ...]) -> tuple[list[Line], list[Line]]:
    """Rows of the main table, and of the paper's variants."""
    found = read_scores(folder)
    teachers = [line(name, found, name) for name in TEACHERS]
    both = {(kind, axis): value for kind in BENCHMARKS for axis, value in _together(folder, kind).items()}
    rows = [
        *teachers,
        best_of("**best teacher**", teachers),
        mean_of("mean of the teachers", teachers),
        Line("all teachers, concatenated", [both]),
        line("the student's start", found, "start"),
        line("**student of all four**", found, "student", seeds),
        *(line(f"student of {name} alone", found, f"only-{name}", seeds) for name in TEACHERS),
    ]
    return rows, [line(title, found, name, seeds) for name, title in STEPS.items()]


def _together(folder: Path, benchmark: str) -> dict[str, float]:
    scores = concatenated(folder, benchmark, TEACHERS)
    return {"linear": scores["top1"], "k-NN": scores["top1_k20"]}


def _from(stages: dict[str, Took], whole: bool) -> str:
    took = ", ".join(f"{stage} {one.wall / 60:.0f} min" for stage, one in stages.items())
    took = took if whole else "in several goes, so that it says nothing of the time"
    machine = f"{platform.machine()}, {os.cpu_count()} processors"
    return f"\n\nMade {datetime.date.today()} by `make proof` on {machine}, PyTorch {torch.__version__} ({took})."


def main() -> None:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("proof"))
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--only", nargs="+", choices=MORE, help="these of the other tables, and nothing else")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--no-docs", action="store_true", help="print the tables and leave docs/proof.md as it is")
    given = parser.parse_args()
    root, seeds = given.folder.resolve(), tuple(range(given.seeds))
    settings = (GPU if given.gpu else {}) | ({"epochs": given.epochs} if given.epochs else {})
    write_images(root / "images")
    write_specialists(root / "images", root / "weights")
    if not given.only:
        whole = not (root / "main/students").exists()
        took = work(root / "main", text(students(), seeds=seeds, **settings))
        rows, variants = main_lines(root / "main", seeds)
        write("main", table(rows, BENCHMARKS) + _from(took, whole), not given.no_docs)
        write("variants", table(variants, BENCHMARKS), not given.no_docs)
    for name in given.only or (MORE if given.more else ()):
        write(name, MORE[name](root, seeds, settings), not given.no_docs)


def write(name: str, text: str, into_docs: bool) -> None:
    """Print a table, and put it in its place."""
    print(f"\n{name}\n{text}", flush=True)
    if into_docs:
        write_between(DOCS, name, text)


if __name__ == "__main__":
    main()
