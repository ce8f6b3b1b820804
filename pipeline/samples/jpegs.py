"""Ordinary JPEGs by libjpeg-turbo itself: Pillow's pixels in half its time, or no answer.

Pillow stays the decoder: it says what can be decoded and what is wrong with the rest. Files that both libraries read with
the same arithmetic (baseline, three channels, the three usual samplings of colour, no warning) are left to `simplejpeg`,
which writes rows of RGB directly where Pillow writes four bytes a pixel and copies them. That the two give the same bytes
here, whatever versions are installed, is tried out first, once a process.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Decode = Callable[[bytes], NDArray[np.uint8]]

_SAMPLINGS = ((1, 1), (2, 1), (2, 2))
"""Horizontal and vertical samples of brightness for one of colour: 4:4:4, 4:2:2, 4:2:0."""


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an image, whose header Pillow has read, is a JPEG that both libraries read with the same arithmetic."""
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or "progressive" in image.info:
        return False
    brightness, *colours = (component[1:3] for component in image.layer)  # type: ignore[attr-defined]
    return brightness in _SAMPLINGS and colours == [(1, 1), (1, 1)]


def decode_jpeg(data: bytes, image: Image.Image) -> NDArray[np.uint8] | None:
    """The pixels of such a JPEG: uint8 (H, W, 3), RGB, writable; None: Pillow has to decode it, or to refuse it."""
    decode = _equal_decoder()
    if decode is None:
        return None
    try:
        pixels_HWC = decode(data)
    except ValueError:  # also for what libjpeg only warns of
        return None
    return pixels_HWC if pixels_HWC.shape == (image.height, image.width, 3) else None


@cache
def _equal_decoder() -> Decode | None:
    """simplejpeg's decoder, if it is installed and gives Pillow's pixels."""
    try:
        import simplejpeg
    except ImportError:  # no wheel for this platform
        return None
    decode: Decode = simplejpeg.decode_jpeg
    noise_HWC = np.random.Generator(np.random.Philox(0)).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(noise_HWC).resize((93, 61), Image.Resampling.BICUBIC)
    for number in range(2 * len(_SAMPLINGS)):
        file = io.BytesIO()
        sampling, restarts = number % len(_SAMPLINGS), number // len(_SAMPLINGS)
        picture.save(file, "JPEG", quality=90 - 20 * restarts, subsampling=sampling, restart_marker_blocks=3 * restarts)
        with Image.open(file) as image:
            if not np.array_equal(decode(file.getvalue()), np.asarray(image)):
                return None
    return decode
