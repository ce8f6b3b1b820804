"""Parameters of a view: a pure function of (recipe, seed, key, view) and the image's size. Imports no torch.

The numbers come from NumPy's Philox bit generator, whose 128-bit key is a BLAKE2b hash of (recipe digest, seed, key,
view), and never from global random state. Exactly `DRAWS` numbers are drawn for every view, whatever the recipe uses,
and each has a fixed place (the first 53 bits of a 64-bit word, as a fraction u in [0, 1)):

    0-19   ten attempts at a crop: area, log ratio     28-31  sort keys of the colour operations' order
    20-21  top, left                                   32     grayscale
    22     flip                                        33-34  blur, its sigma
    23     jitter                                      35     solarize
    24-27  brightness, contrast, saturation, hue

A later operation appends its numbers; moving one would change every cached view (the tests hold golden values).
"""

import hashlib
import math
import threading
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from unic_pipe.schemas.base import canonical_json, digest_of
from unic_pipe.schemas.recipes import Range, Recipe
from unic_pipe.schemas.views import JitterOperation, ViewParameters

__all__ = ["DRAWS", "MAX_ASPECT", "ViewParameters", "view_parameters"]

DRAWS = 36
"""Random numbers per view."""

MAX_ASPECT = 64
"""The `center` crop first cuts longer images to this aspect ratio: resizing the short side of a 1 x 10,000 image to
256 would otherwise need two gigabytes, of which the centre crop keeps a ten-thousandth."""

KEPT_DIGESTS = 64
"""Of recipes, with the recipes: nothing else has their place in memory."""

_ATTEMPTS = 10
_JITTER: tuple[JitterOperation, ...] = get_args(JitterOperation)

_NONE = np.zeros(4, np.uint64)

Box = tuple[int, int, int, int]


def view_parameters(recipe: Recipe, seed: int, key: str, view: int, size_hw: tuple[int, int]) -> ViewParameters:
    """Parameters of view number `view` of the sample `key`, whose decoded image is `size_hw` = (height, width) pixels.

    The same for every encoder: no input size enters. For the crop `center` the box is the whole image (its central
    part when it is longer than `MAX_ASPECT`), and what remains to be drawn is drawn as for `random`.
    """
    height, width = size_hw
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no views")
    u = _uniforms(recipe, seed, key, view)
    top, left, box_height, box_width = (
        _random_box(recipe, u, height, width) if recipe.crop == "random" else _center_box(height, width)
    )
    return ViewParameters(
        top=top,
        left=left,
        height=box_height,
        width=box_width,
        flip=u[22] < recipe.flip,
        jitter=_jitter(recipe, u) if u[23] < recipe.jitter_probability else (),
        grayscale=u[32] < recipe.grayscale,
        blur_sigma=_between(recipe.blur_sigma, u[34]) if u[33] < recipe.blur_probability else None,
        solarize=u[35] < recipe.solarize_probability,
    )


def _uniforms(recipe: Recipe, seed: int, key: str, view: int) -> list[float]:
    """`DRAWS` numbers in [0, 1). Raw words, because NumPy promises the stream of a bit generator, not a method's."""
    name = canonical_json([_digest_of(recipe), seed, key, view])
    philox_key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest()[::-1], "<u8").astype(np.uint64)
    words = _generator(philox_key).random_raw(DRAWS)
    uniforms: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return uniforms


_digests: dict[int, tuple[Recipe, str]] = {}
_mine = threading.local()


def _digest_of(recipe: Recipe) -> str:
    """Kept for every object: recipes that are equal (0.0 and -0.0) may have different digests."""
    found = _digests.get(id(recipe))
    if found is None:
        if len(_digests) >= KEPT_DIGESTS:
            _digests.clear()
        found = _digests[id(recipe)] = recipe, digest_of(recipe)
    return found[1]


def _generator(key_2: NDArray[np.uint64]) -> np.random.Philox:
    """At the beginning of its stream. One for each thread: a new one asks the system for a seed that a key makes useless, which
    takes longer than all that is drawn."""
    if not hasattr(_mine, "generator"):
        _mine.generator = np.random.Philox(key=0)
    found: np.random.Philox = _mine.generator
    found.state = {
        "bit_generator": "Philox",
        "state": {"counter": _NONE, "key": key_2},
        "buffer": _NONE,
        "buffer_pos": len(_NONE),
        "has_uint32": 0,
        "uinteger": 0,
    }
    return found


def _between(bounds: Range, u: float) -> float:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _below(n: int, u: float) -> int:
    """An integer in [0, n)."""
    return min(int(u * n), n - 1)


def _random_box(recipe: Recipe, u: list[float], height: int, width: int) -> Box:
    """Box (top, left, height, width) with the distribution of torchvision's RandomResizedCrop.

    Area uniform, ratio log-uniform, ten attempts at a box that fits, then the largest central box of allowed ratio.
    """
    log_ratio = (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))
    for attempt in range(_ATTEMPTS):
        area = height * width * _between(recipe.scale, u[2 * attempt])
        ratio = math.exp(_between(log_ratio, u[2 * attempt + 1]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _below(height - h + 1, u[20]), _below(width - w + 1, u[21]), h, w
    w, h = width, height
    if width / height < recipe.ratio[0]:
        h = max(1, round(width / recipe.ratio[0]))
    elif width / height > recipe.ratio[1]:
        w = max(1, round(height * recipe.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _center_box(height: int, width: int) -> Box:
    """The whole image, or its central part when one side is more than `MAX_ASPECT` times the other."""
    top = max(0, height - MAX_ASPECT * width) // 2
    left = max(0, width - MAX_ASPECT * height) // 2
    return top, left, height - 2 * top, width - 2 * left


def _jitter(recipe: Recipe, u: list[float]) -> tuple[tuple[JitterOperation, float], ...]:
    """Colour operations in a random order; those of strength 0 are left out.

    Factors as torchvision's ColorJitter: uniform in [max(0, 1 - s), 1 + s], for hue in [-s, s].
    """
    order = sorted(range(len(_JITTER)), key=u[28:32].__getitem__)
    operations = []
    for i in order:
        strength = recipe.jitter[i]
        if strength > 0:
            bounds = (-strength, strength) if _JITTER[i] == "hue" else (max(0.0, 1 - strength), 1 + strength)
            operations.append((_JITTER[i], _between(bounds, u[24 + i])))
    return tuple(operations)
