"""Does the demo's claim hold on machines that nobody has seen? Three seeds times three sets of CPU kernels.

usage: python examples/proof/steady.py [FOLDER] [KERNELS ...]

Runs the demo with `seeds: [0, 1, 2]` once for every set of kernels, each in a folder of its own, so that also features are
made anew. Prints a Markdown table with a row per training, and says whether each matches or beats the best teacher on every
benchmark (as the report counts it) and every single teacher on the mean. A run that was cut off goes on.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

from unic_pipe.stages.demo.config import write_config
from unic_pipe.stages.demo.data import COUNTS
from unic_pipe.stages.report.view import Comparison, average

KERNELS = {"default": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE"}
"""PyTorch's name of a set of kernels (`ATEN_CPU_CAPABILITY`), and oneDNN's (`ONEDNN_MAX_CPU_ISA`)."""
TESTED = {"digits": "digits-test", "digits-shifted": "shifted-test", "shapes": "shapes-test"}
TEACHERS = ("generalist", "digit-expert")
SEEDS = (0, 1, 2)


def here() -> list[str]:
    """The sets of kernels that this processor can run; PyTorch dies of those that it cannot."""
    import torch

    names = list(KERNELS)
    return names[: names.index(torch.backends.cpu.get_cpu_capability().lower()) + 1]


def write_seeds(folder: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """The demo's configuration, with several seeds of its student."""
    folder.mkdir(parents=True, exist_ok=True)
    file = write_config(folder)
    text = file.read_text()
    if "seeds:" not in text:
        file.write_text(text.replace("    init: pretrained", f"    seeds: {list(seeds)}\n    init: pretrained"))


def run(folder: Path, kernels: str) -> None:
    """The demo with three seeds, by a set of kernels."""
    write_seeds(folder)
    chosen = {"ATEN_CPU_CAPABILITY": kernels, "ONEDNN_MAX_CPU_ISA": KERNELS[kernels]}
    subprocess.run(
        [sys.executable, "-m", "unic_pipe.cli.main", "demo", str(folder)], env=os.environ | chosen, check=True
    )


def scores(folder: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """Linear top-1 and test images by encoder and benchmark."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    with (folder / "evaluations/main/results.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["probe"], row["metric"], row["status"]) == ("logistic", "top1", "done"):
                found.setdefault(row["encoder"], {})[row["benchmark"]] = (
                    float(row["value"]),
                    COUNTS[TESTED[row["benchmark"]]],
                )
    return found


def lines(kernels: str, found: dict[str, dict[str, tuple[float, int]]]) -> list[str]:
    """A row of the table for every encoder."""
    rows = []
    best = {b: max((found[t][b][0], t) for t in TEACHERS) for b in found[TEACHERS[0]]}
    mean = {name: average(v for v, _ in row.values()) or 0.0 for name, row in found.items()}
    for name, row in found.items():
        claim = ""
        if name not in TEACHERS and not name.endswith("-random"):
            met = [Comparison(b, v, *best[b], samples=n).reached for b, (v, n) in row.items()]
            claim = f"{sum(met)} of {len(met)}{', mean' if mean[name] > max(mean[t] for t in TEACHERS) else ''}"
        cells = [f"{100 * v:.1f}" for v, _ in row.values()]
        rows.append(f"| {kernels} | {name} | {' | '.join(cells)} | {100 * mean[name]:.1f} | {claim} |")
    return rows


def main(folder: Path, chosen: list[str]) -> None:
    """Run what is asked for, and print the table."""
    table: list[str] = []
    able = here()
    print(f"This processor runs: {', '.join(able)}.", flush=True)
    for kernels in chosen or able:
        run(folder / kernels, kernels)
        found = scores(folder / kernels)
        head = f"| kernels | encoder | {' | '.join(found[TEACHERS[0]])} | mean | reached |"
        table = table or [head, "|---" * (head.count("|") - 1) + "|"]
        table += lines(kernels, found)
    print("\n".join(table))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "steady"), sys.argv[2:])
