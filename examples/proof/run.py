"""Does one student keep the best of every teacher? The tables of docs/proof.md, from real images and real weights.

    make proof        the main table, a student of each teacher alone, and the paper's variants: 24 trainings
    make proof-more   views, bits per value and the number of teachers besides; stopped, it goes on

usage: python examples/proof/run.py [FOLDER] [--more] [--gpu] [--epochs N] [--seeds N] [--no-docs]

Everything of one setting comes from one cache below FOLDER (`proof`). `--gpu` uses larger images and more epochs.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from images import write_images
from settings import BENCHMARKS, SEEDS, STEPS, TEACHERS, students, text
from specialists import write_specialists
from tables import Line, best_of, line, mean_of, read_scores, table, write_between
from together import concatenated

DOCS = Path(__file__).parents[2] / "docs/proof.md"
GPU = {"size": 96, "epochs": 10}


def unic_pipe(folder: Path, *arguments: str) -> float:
    """Run a command there; its wall time in seconds."""
    begin = time.perf_counter()
    config = str(folder / "unic-pipe.yaml")
    subprocess.run([sys.executable, "-m", "unic_pipe.cli.main", *arguments, "--config", config], check=True)
    return time.perf_counter() - begin


def work(folder: Path, settings: str) -> dict[str, float]:
    """Index, extract, train and evaluate what a configuration names; seconds by stage."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unic-pipe.yaml").write_text(settings)
    return {stage: unic_pipe(folder, stage) for stage in ("index", "extract", "distill", "evaluate")}


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


def more(root: Path, seeds: tuple[int, ...], **settings: int) -> dict[str, list[Line]]:
    """Rows of the tables that take a night, by their names in docs/proof.md."""
    full = {"student": students()["student"]}
    views, bits, teachers = [], [], []
    for count in (1, 2, 4, 8):
        folder = root / f"views-{count}"
        work(folder, text(full, views=count, seeds=seeds, **settings))
        views.append(line(f"{count} cached view{'s' if count > 1 else ''}", read_scores(folder), "student", seeds))
    for title, codec, snr_db in (
        ("float16", "float16", 15.0),
        *((f"{db} dB", "klt", db) for db in (25.0, 15.0, 9.0, 5.0, 3.0)),
    ):
        folder = root / f"bits-{title.replace(' ', '')}"
        work(folder, text(full, codec=codec, snr_db=snr_db, seeds=seeds, **settings))
        bits.append(line(title, read_scores(folder), "student", seeds))
    folder, chosen = root / "teachers", list(TEACHERS)
    sets = {"-".join(map(str, range(n))): chosen[:n] for n in range(1, len(chosen) + 1)}
    given = {f"of-{key}": f"    teachers: [{', '.join(names)}]\n{full['student']}" for key, names in sets.items()}
    work(folder, text(given, seeds=seeds, **settings))
    for key, names in sets.items():
        teachers.append(line(" + ".join(names), read_scores(folder), f"of-{key}", seeds))
    return {"views": views, "bits": bits, "number": teachers}


def _from(seconds: dict[str, float]) -> str:
    took = ", ".join(f"{stage} {value / 60:.0f} min" for stage, value in seconds.items())
    machine = f"{platform.machine()}, {os.cpu_count()} processors"
    return f"\n\nMade {datetime.date.today()} by `make proof` on {machine}, PyTorch threads as configured ({took})."


def main() -> None:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("proof"))
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--no-docs", action="store_true", help="print the tables and leave docs/proof.md as it is")
    given = parser.parse_args()
    root, seeds = given.folder.resolve(), tuple(range(given.seeds))
    settings = (GPU if given.gpu else {}) | ({"epochs": given.epochs} if given.epochs else {})
    write_images(root / "images")
    write_specialists(root / "images", root / "weights")
    seconds = work(root / "main", text(students(), seeds=seeds, **settings))
    rows, variants = main_lines(root / "main", seeds)
    found = {"main": rows, "variants": variants} | (more(root, seeds, **settings) if given.more else {})
    for name, lines in found.items():
        made = table(lines, BENCHMARKS)
        print(f"\n{name}\n{made}", flush=True)
        if not given.no_docs:
            write_between(DOCS, name, made + (_from(seconds) if name == "main" else ""))


if __name__ == "__main__":
    main()
