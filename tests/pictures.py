"""The demo's figures and pictures for the docs: `make pictures` runs the demo, then its ablation, and takes both reports.

usage: python tests/pictures.py [FOLDER]   (FOLDER: where the demo lives; a run that was cut off goes on)

Writes docs/report.png and docs/ablation.png, and prints the tables (for README, and for docs/ingredients.md) with the machine.
Needs Chromium.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import CHROMIUM, Browser
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
REPORT = Path("evaluations/main/report.html")
WIDTH, HEIGHT = 900, 1180
HALF = "-basic"
"""Students of the ablation end like this, among others; the first report is taken before they are there."""


def unic_pipe(*arguments: str) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "unic_pipe.cli.main", *arguments], check=True)


def opened(browser: Browser, folder: Path) -> None:
    browser.open((folder / REPORT).absolute(), WIDTH)


def section(browser: Browser, name: str, folder: Path) -> Image.Image:
    """A section of the open report."""
    box = f"document.getElementById('{name}').getBoundingClientRect()"
    top, height = browser.ask(f"{box}.top + window.scrollY"), browser.ask(f"{box}.height")
    browser.picture(folder / f"{name}.png", top, WIDTH, height)
    return Image.open(folder / f"{name}.png").convert("RGB")


def below(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width, one below the other."""
    whole = Image.new("RGB", (WIDTH, sum(p.height for p in pictures)))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (0, sum(p.height for p in pictures[:i])))
    return whole


def table(folder: Path) -> str:
    """Top-1 in per cent of every encoder by benchmark and probe, as Markdown."""
    rows = list(csv.DictReader(io.StringIO((folder / REPORT).with_name("results.csv").read_text())))
    shown = [r for r in rows if r["metric"] in ("top1", "top1_k20") and r["status"] == "done"]
    columns = list(dict.fromkeys((r["benchmark"], r["probe"]) for r in shown))
    lines = ["| encoder | " + " | ".join(", ".join(c) for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for encoder in dict.fromkeys(r["encoder"] for r in shown):
        values = {
            (r["benchmark"], r["probe"]): f"{100 * float(r['value']):.1f}" for r in shown if r["encoder"] == encoder
        }
        lines.append(f"| `{encoder}` | " + " | ".join(values.get(c, "–") for c in columns) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores, and how busy they were."""
    facts = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in facts.read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        browser = Browser(temporary)
        try:
            if not list((folder / "students").glob(f"*{HALF}")):
                unic_pipe("demo", str(folder))
                opened(browser, folder)
                browser.picture(DOCS / "report.png", 0, WIDTH, HEIGHT)
                print(f"{table(folder)}\n({machine()})")
            unic_pipe("distill", "--ablation", "--config", str(folder))
            unic_pipe("evaluate", "--config", str(folder))
            opened(browser, folder)
            below([section(browser, name, Path(temporary)) for name in ("relative", "training")]).save(
                DOCS / "ablation.png", optimize=True
            )
            print(f"{table(folder)}\n({machine()})")
        finally:
            browser.close()


if __name__ == "__main__":
    if CHROMIUM is None:
        sys.exit("No Chromium on this machine: apt-get install chromium")
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
