"""What an image costs before it reaches a network: decode, crop, and each colour operation, on one core.

Photographs of scikit-learn as JPEGs of 500 x 375 pixels; median CPU time in a thread, where the views of a run are drawn, of
the round that other programs disturbed least.
With another checkout, its pieces are timed in turns with these, and every picture is compared.

    OMP_NUM_THREADS=1 .venv/bin/python tests/views_speed.py [--against CHECKOUT]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

SIZE, VIEWS, ROUNDS = 224, 4, 4
CHECKOUT = Path(__file__).parents[1]
CHANCES = {
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.8,
    "grayscale": 0.2,
    "blur": 0.2,
    "solarize": 0.2,
}
"""How many of a recipe's views have an operation (`unic`)."""


def photographs() -> list[bytes]:
    """Eight JPEGs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for picture in load_sample_images().images:
        for step in range(4):
            part = picture[7 * step : 7 * step + 400, 10 * step : 10 * step + 533]
            buffer = io.BytesIO()
            Image.fromarray(part).resize((500, 375)).save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
    return files


def measured() -> dict[str, Any]:
    """Median CPU milliseconds of each piece, by name; "views": the pictures' hash."""
    import torch

    from unic_pipe.pipeline.samples.images import decode_image
    from unic_pipe.pipeline.views.parameters import view_parameters
    from unic_pipe.pipeline.views.render import render, render_geometry
    from unic_pipe.schemas.recipes import UNIC
    from unic_pipe.schemas.views import ViewParameters

    torch.set_num_threads(1)
    files = photographs()
    images = [decode_image(data) for data in files]
    views = [
        (image, view_parameters(UNIC, 0, f"{number}", view, (375, 500)))
        for view in range(VIEWS)
        for number, image in enumerate(images)
    ]
    crops = [np.ascontiguousarray(render_geometry(*view, UNIC, SIZE).permute(1, 2, 0).numpy()) for view in views[::4]]
    plain = ViewParameters(0, 0, SIZE, SIZE, False, (), False, None, False)
    operations = {
        **{name: replace(plain, jitter=((name, 1.2),)) for name in ("brightness", "contrast", "saturation")},
        "hue": replace(plain, jitter=(("hue", 0.05),)),
        "grayscale": replace(plain, grayscale=True),
        "blur": replace(plain, blur_sigma=2.0),
        "solarize": replace(plain, solarize=True),
    }
    found = {
        "decode": median_ms(decode_image, [(data,) for data in files * 4]),
        "crop, resize, flip": median_ms(render_geometry, [(*view, UNIC, SIZE) for view in views]),
    }
    copied = median_ms(render, [(crop, plain, UNIC, SIZE) for crop in crops])
    for name, parameters in operations.items():
        found[name] = median_ms(render, [(crop, parameters, UNIC, SIZE) for crop in crops]) - copied
    digest = hashlib.sha256()
    for view in views:
        digest.update(render(*view, UNIC, SIZE).numpy())
    for image in images:
        digest.update(image)
    return {**found, "views": digest.hexdigest()}


def median_ms(function: Callable[..., object], calls: Sequence[tuple[Any, ...]]) -> float:
    """Median CPU time of these calls, after one round that is not counted."""
    times = []
    for call in (*calls, *calls):
        started = time.thread_time()
        function(*call)
        times.append(time.thread_time() - started)
    return 1e3 * statistics.median(times[len(calls) :])


def as_extraction_does() -> None:
    """Memory as a command has it that makes views on a CPU; programs of before left it to malloc."""
    try:
        from unic_pipe.pipeline.process.memory import keep_freed_memory, share_one_heap
    except ImportError:
        return
    share_one_heap()
    keep_freed_memory()


def of_checkout(folder: Path) -> dict[str, Any]:
    """`measured` in a process that uses the program of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    output = subprocess.run(
        [sys.executable, __file__, "--measure"], env=environment, check=True, stdout=subprocess.PIPE
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def table(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """The pieces of each checkout, in CPU milliseconds, and what all of them together make of a core."""
    lines = ["| piece, CPU ms an image on one core | " + " | ".join(rounds) + " |", "|---|" + "---|" * len(rounds)]
    pieces = {
        folder: {name: min(r[name] for r in found) for name in found[0] if name != "views"}
        for folder, found in rounds.items()
    }
    for name in next(iter(pieces.values())):
        often = f" ({CHANCES[name]:.0%} of the views)" if name in CHANCES else ""
        lines.append(f"| {name}{often} | " + " | ".join(f"{p[name]:.2f}" for p in pieces.values()) + " |")
    totals = [sum(ms * CHANCES.get(name, 1.0) for name, ms in p.items()) for p in pieces.values()]
    lines.append("| an image of the recipe `unic` | " + " | ".join(f"{ms:.2f}" for ms in totals) + " |")
    lines.append("| images a second and core | " + " | ".join(f"{1e3 / ms:.0f}" for ms in totals) + " |")
    if len({r["views"] for found in rounds.values() for r in found}) > 1:
        lines.append("\nThe pictures DIFFER.")
    elif len(rounds) > 1:
        lines.append("\nEvery picture is the same.")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--measure", action="store_true", help="one round of this program, as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        as_extraction_does()
        found: list[dict[str, Any]] = []
        thread = Thread(target=lambda: found.append(measured()))
        thread.start()
        thread.join()
        print(json.dumps(found[0]))
        return
    folders = {"before": arguments.against, "now": CHECKOUT} if arguments.against else {"now": CHECKOUT}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    for _ in range(ROUNDS):
        for name, folder in folders.items():
            rounds[name].append(of_checkout(folder))
    print(table(rounds))


if __name__ == "__main__":
    main()
