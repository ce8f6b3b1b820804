"""The demo's samples, written as WebDataset shards: real scanned digits, shifted ones, and synthetic shapes.

Shapes: H, W pixels.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from unic_pipe.pipeline.storage import LocalStore, sha256

SIDE = 32
"""Side of every image in pixels; the scans' 8 × 8 are enlarged."""
SPLITS = {"train": 1_007, "val": 90, "test": 700}
COUNTS = {
    **{f"digits-{split}": count for split, count in SPLITS.items()},
    "shifted-train": SPLITS["train"],
    "shifted-test": SPLITS["test"],
    "shapes-train": 1_600,
    "shapes-test": 1_000,
}
ROWS_PER_SHARD = 500
SHAPES = ("circle", "ring", "square", "triangle", "cross", "star", "stripes", "dots")
Sample = tuple[str, Image.Image, int]


def write_samples(folder: Path) -> None:
    """Write every shard of the demo below `folder`, unless it is there. The bytes are the same every time."""
    scans, labels = digits()
    ends = np.cumsum(list(SPLITS.values())).tolist()
    for (split, count), end in zip(SPLITS.items(), ends, strict=True):
        rows = range(end - count, end)
        write_shards(
            folder, f"digits-{split}", count, ((f"digit{i:04d}", enlarge(scans[i]), int(labels[i])) for i in rows)
        )
        if split != "val":
            write_shards(folder, f"shifted-{split}", count, _shifted(scans, labels, rows))
    for seed, name in enumerate(("shapes-train", "shapes-test"), start=1):
        write_shards(folder, name, COUNTS[name], _shapes(COUNTS[name], seed))


def seen_test_images(folder: Path) -> tuple[int, int, int]:
    """How many images the student learns from, how many the benchmarks test on, and how many of these are among those.

    Images are told apart by the hash of their pixels, so that one that was encoded again would count too.
    """
    pool, tests = (_hashes(sorted(folder.glob(f"*-{part}-*.tar"))) for part in ("train", "test"))
    learned = set(pool)
    return len(pool), len(tests), sum(image in learned for image in tests)


def _hashes(shards: Iterable[Path]) -> list[str]:
    found = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file"
                    found.append(sha256(np.asarray(Image.open(file)).tobytes()))
    return found


def _shards(folder: Path, name: str, count: int) -> list[Path]:
    return [folder / f"{name}-{shard:06d}.tar" for shard in range(-(-count // ROWS_PER_SHARD))]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 scans of scikit-learn's digits, (1797, 8, 8) with values 0 to 16, in a seeded random order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return found.images[order], found.target[order]


def enlarge(digit_HW: np.ndarray) -> Image.Image:
    """A scan, (8, 8) with values 0 to 16, as an image of SIDE pixels."""
    grey = Image.fromarray((digit_HW * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def _shifted(scans: np.ndarray, labels: np.ndarray, rows: range) -> Iterator[Sample]:
    """The same digits moved by up to 4 pixels, with less contrast, on a grey ground, with noise."""
    for i in rows:
        rng = np.random.default_rng([7, i])
        dy, dx = rng.integers(-4, 5, size=2)
        moved = Image.new("RGB", (SIDE, SIDE))
        moved.paste(enlarge(scans[i]), (int(dx), int(dy)))
        noisy = 40 + 0.6 * np.asarray(moved, np.float64) + rng.normal(0, 12, size=(SIDE, SIDE, 3))
        yield f"shifted{i:04d}", Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), int(labels[i])


def _shapes(count: int, seed: int) -> Iterator[Sample]:
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        label = i % len(SHAPES)
        yield f"shape{seed}-{i:04d}", _shape(SHAPES[label], rng), label


def _shape(kind: str, rng: np.random.Generator) -> Image.Image:
    """One shape in random colours, place, size and turn, with noise (drawn four times larger, then reduced)."""
    big = SIDE * 4
    ground, ink = (tuple(int(c) for c in rng.integers(0, 256, 3)) for _ in range(2))
    if sum(abs(a - b) for a, b in zip(ground, ink, strict=True)) < 150:
        ink = tuple(255 - c for c in ground)
    image = Image.new("RGB", (big, big), ground)
    _draw(ImageDraw.Draw(image), kind, float(rng.uniform(0.4, 0.75)) * big / 2, big / 2, ink, ground)
    dx, dy = rng.integers(-big // 6, big // 6 + 1, 2)
    image = image.rotate(
        float(rng.uniform(-180, 180)), Image.Resampling.BICUBIC, translate=(int(dx), int(dy)), fillcolor=ground
    )
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    return Image.fromarray((pixels + rng.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8))


def _draw(
    draw: ImageDraw.ImageDraw, kind: str, r: float, c: float, ink: tuple[int, ...], ground: tuple[int, ...]
) -> None:
    box = (c - r, c - r, c + r, c + r)
    if kind in ("circle", "ring"):
        draw.ellipse(box, fill=ink)
        if kind == "ring":
            draw.ellipse((c - r * 0.55, c - r * 0.55, c + r * 0.55, c + r * 0.55), fill=ground)
    elif kind == "square":
        draw.rectangle(box, fill=ink)
    elif kind == "cross":
        draw.rectangle((c - r * 0.3, c - r, c + r * 0.3, c + r), fill=ink)
        draw.rectangle((c - r, c - r * 0.3, c + r, c + r * 0.3), fill=ink)
    elif kind in ("triangle", "star"):
        points = 3 if kind == "triangle" else 10
        radii = [r] if kind == "triangle" else [r, r * 0.4]
        angles = [2 * np.pi * k / points - np.pi / 2 for k in range(points)]
        draw.polygon(
            [
                (c + radii[k % len(radii)] * float(np.cos(a)), c + radii[k % len(radii)] * float(np.sin(a)))
                for k, a in enumerate(angles)
            ],
            fill=ink,
        )
    elif kind == "stripes":
        for k in range(-2, 3, 2):
            draw.rectangle((c - r, c + (k - 0.4) * r / 2.5, c + r, c + (k + 0.4) * r / 2.5), fill=ink)
    else:
        for x in (-0.6, 0, 0.6):
            for y in (-0.6, 0, 0.6):
                draw.ellipse((c + (x - 0.2) * r, c + (y - 0.2) * r, c + (x + 0.2) * r, c + (y + 0.2) * r), fill=ink)


def write_shards(folder: Path, name: str, count: int, samples: Iterable[Sample]) -> None:
    """Write `count` samples as `<name>-000000.tar` ..., unless all of these are there; each shard appears whole or not at
    all."""
    import webdataset

    paths = _shards(folder, name, count)
    if all(path.exists() for path in paths):
        return
    store, source = LocalStore(folder), iter(samples)
    for path in paths:
        shard = io.BytesIO()
        with webdataset.TarWriter(shard, mtime=0) as tar:
            for key, image, label in islice(source, ROWS_PER_SHARD):
                png = io.BytesIO()
                image.save(png, "PNG")
                tar.write({"__key__": key, "png": png.getvalue(), "cls": str(label)})
        store.put(path.name, shard.getvalue())
