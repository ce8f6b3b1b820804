"""What `plan` says against what then happens, on this machine and a folder of images: bytes, hours, and plan's own wait.

    .venv/bin/python tests/plan_truth.py PHOTOS [--images 384]

Three configurations are indexed, planned in a fresh process, as a person would, and then extracted and distilled. It
wants a machine that does nothing else, where it takes less than ten minutes on two cores. Bytes should be within 5 %,
hours within 25 %, and the first answer there within 20 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from unic_pipe import Pipeline
from unic_pipe.pipeline.process.memory import share_one_heap

SAMPLES = "samples: {block_rows: 32, datasets: {train: {source: photos}}}\ncompute: {device: cpu}\n"
LITES = ("lite0", "lite1", "lite2")
CONFIGS = {
    "three Lite teachers, auto": "".join(
        (
            "views: {count: 1}\ncache: {codec: auto}\n",
            f"teachers: {{{', '.join(f'{n}: {{encoder: efficientnet-{n}}}' for n in LITES)}}}\n",
        )
    ),
    "a Lite and a ViT, int8, student Lite0 at 64 px": """\
views: {count: 2}
cache: {codec: int8}
teachers:
  lite0: {encoder: efficientnet-lite0, image_size: 160}
  vit: {encoder: "timm:vit_small_patch16_224", weights: "random:0", image_size: 112}
students:
  main:
    architecture: tf_efficientnet_lite0
    image_size: 64
    ladder: {hidden: 96, last_hidden: 320}
    optimizer: {epochs: 6, warmup_epochs: 1, batch: 64}
""",
    "klt, student ViT-S at 112 px": """\
views: {count: 1}
cache: {codec: klt}
teachers:
  vit: {encoder: "timm:vit_small_patch16_224", weights: "random:0", image_size: 112}
students:
  main:
    architecture: vit_small_patch16_224
    image_size: 112
    ladder: {hidden: 384, last_hidden: 1536}
    optimizer: {epochs: 2, warmup_epochs: 1, batch: 64}
""",
}


def main() -> None:
    """Print a line for every stage of every configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder with a folder of images for every class")
    parser.add_argument("--images", type=int, default=384)
    options = parser.parse_args()
    everything = sorted(p for p in options.photos.resolve().rglob("*") if p.is_file())
    chosen = everything[:: max(1, len(everything) // options.images)][: options.images]
    print(f"{len(chosen)} images; said → happened")
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory(prefix="unic-pipe-truth-") as path:
            print(f"\n{name}", flush=True)
            compare(Path(path), chosen, options.photos.resolve(), config)


def compare(folder: Path, images: list[Path], root: Path, config: str) -> None:
    """Plan and carry out one configuration."""
    for image in images:
        link = folder / "photos" / image.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image)
    (folder / "unic-pipe.yaml").write_text(SAMPLES + config)
    pipeline = Pipeline(folder, progress=False)
    pipeline.index()
    started = time.perf_counter()
    said = json.loads(
        subprocess.run(
            [sys.executable, "-m", "unic_pipe.cli.main", "plan", "--json"],
            cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ).stdout
    )  # fmt: skip
    print(f"  first answer after {time.perf_counter() - started:.1f} s")
    happened = {"extract": seconds_of(pipeline.extract)}
    if pipeline.config.students:
        happened["distill"] = seconds_of(pipeline.distill)
    size = sum(f.stat().st_size for f in (folder / "features").rglob("*") if f.is_file() and ".tmp" not in f.parts)
    planned = said["stages"]["extract"]["bytes"]
    off, spread = planned / size - 1, said["bytes_spread"]
    print(f"  bytes    {planned / 1e6:9.2f} → {size / 1e6:9.2f} MB  {off:+6.1%}  (said ± {spread or 0:.0%})")
    for stage, seconds in happened.items():
        expected = 3600 * said["stages"][stage]["hours"]
        print(f"  {stage:<8} {expected:9.1f} → {seconds:9.1f} s   {expected / seconds - 1:+6.1%}", flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of a stage, without those of its imports."""
    import unic_pipe.stages.distill.stage
    import unic_pipe.stages.extract  # noqa: F401

    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    share_one_heap()  # as the commands do
    main()
