"""Commands in a working folder of the proof, and what they took."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from unic_pipe.pipeline.workspace.configuration import load_workspace


@dataclass(frozen=True)
class Took:
    """What something cost, in seconds."""

    wall: float
    processor: float

    def __add__(self, other: "Took") -> "Took":
        return Took(self.wall + other.wall, self.processor + other.processor)


def unic_pipe(folder: Path, *arguments: str) -> Took:
    """Run a command there. What it took is only right where no other command runs meanwhile."""
    begin, before = time.perf_counter(), os.times()
    config = str(folder / "unic-pipe.yaml")
    subprocess.run([sys.executable, "-m", "unic_pipe.cli.main", *arguments, "--config", config], check=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Took(time.perf_counter() - begin, processor)


def work(folder: Path, settings: str) -> dict[str, Took]:
    """Index, extract, train and evaluate what a configuration names; what it took by stage."""
    took = prepare(folder, settings)
    return took | {"distill": train(folder), "evaluate": unic_pipe(folder, "evaluate")}


def prepare(folder: Path, settings: str) -> dict[str, Took]:
    """Index and extract; what it took by stage."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unic-pipe.yaml").write_text(settings)
    return {stage: unic_pipe(folder, stage) for stage in ("index", "extract")}


def train(folder: Path, *options: str) -> Took:
    """All students, one thread each in as many processes as there are processors; on a GPU those of a seed after another.

    Small images keep one thread busy and two waiting for each other. Students that are given to one process and agree
    in their seed train in one pass.
    """
    names = list(load_workspace(folder).config.students)
    alone = () if torch.cuda.is_available() else ("--set", "distill.threads=1")
    parts = shares(names, 1 if torch.cuda.is_available() else os.cpu_count() or 1)
    begin, before = time.perf_counter(), os.times()
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda mine: [unic_pipe(folder, "distill", *one, *options, *alone) for one in mine], parts))
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Took(time.perf_counter() - begin, processor)


def shares(names: list[str], processes: int) -> list[list[list[str]]]:
    """What each process types, one command after the other: a seed's students, in as many parts as there are processes. Where a
    seed has fewer, the next begins with the next process."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        seeds.setdefault(name.rpartition("-")[2], []).append(name)
    found: list[list[list[str]]] = [[] for _ in range(processes)]
    first = 0
    for mine in seeds.values():
        for number in range(min(processes, len(mine))):
            words = [word for name in mine[number::processes] for word in ("--student", name)]
            found[(first + number) % processes].append(words)
        first += len(mine)
    return [one for one in found if one]
