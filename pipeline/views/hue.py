"""Turning the hue of uint8 images: torchvision v2's arithmetic to the last bit, in a fraction of its time.

torchvision goes RGB -> HSV -> RGB in float32 on all three channels. What it computes for the largest and the smallest of
a pixel's channels is known beforehand: their distances to the largest are 0 and 1 spans, and the turned pixel has the
same two bytes again, wherever they go. So only the middle channel is computed, by the same IEEE operations in the same
order, and what is picked is picked on bytes (the tests compare all kinds of colours and ties).

Formulas: A. R. Smith, Color gamut transform pairs, SIGGRAPH 1978.

Shapes: H, W pixels; C = 3 channels (RGB); all arrays without a suffix are (H, W).
"""

import numpy as np
from numpy.typing import NDArray

_F = np.float32
_TO_FLOAT = _F(1.0 / 255.0)
_TO_BYTE = _F(255.0 + 1.0 - 1e-3)
"""torchvision's factor: the largest float below 1 must not become 256."""
_ONE, _ZERO = _F(1), _F(0)
_TINY = _F(1e-9)
"""Stands for a divisor of 0: what is divided is 0 then, and a grey pixel's saturation too. Every other divisor is larger."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def turn_hue(image_CHW: Bytes, turn: float) -> Bytes:
    """The image with every pixel's hue moved by `turn`, in -.5 to .5 of the colour circle; uint8 (3, H, W)."""
    r, g, b = image_CHW
    high = np.maximum(np.maximum(r, g), b)
    low = np.minimum(np.minimum(r, g), b)
    middle = r ^ g ^ b ^ high ^ low
    v, c, span = (np.multiply(x, _TO_FLOAT, dtype=_F) for x in (high, middle, low))
    np.subtract(v, span, out=span)
    s = span / np.maximum(v, _TINY)
    # How far the middle channel is below the largest, in spans.
    np.subtract(v, c, out=c)
    np.divide(c, np.maximum(span, _TINY, out=span), out=c)
    h6 = _turned(_hue(image_CHW, high, c), turn)
    sector = h6.astype(np.uint8)
    h6 -= sector
    sector *= sector < 6  # 6 is 0 again
    return _picked(sector, high, _middle(sector & np.uint8(1), h6, s, v), low)


def _hue(image_CHW: Bytes, high: Bytes, c: Floats) -> Floats:
    """Six times the hue, in -1 to 5, as torchvision adds it up; `c` is used up.

    With the distances 0 of the largest and 1 of the smallest channel its three sums are c - 1 or 1 - c where red is the
    largest, (c + 2) - 1 or 3 - c where green is, and (c + 4) - 1 or 5 - c where blue is.
    """
    r, g, b = image_CHW
    red = r == high
    green = (g == high) > red
    blue = ~(red | green)
    minus = ((red & (g >= b)) | (green & (r < b)) | (blue & (g < r))).view(np.uint8)
    c *= _signs(minus)
    c += (blue.view(np.uint8) << 2) | (green.view(np.uint8) << 1) | minus
    c -= minus ^ 1
    return c


def _turned(h6: Floats, turn: float) -> Floats:
    """Six times the hue moved by `turn`, in 0 to 6; in place."""
    h6 *= _F(1.0 / 6.0)
    h6 += _ONE
    h6 -= np.floor(h6)
    h6 += _F(turn)
    h6 -= np.floor(h6)
    h6 *= _F(6)
    return h6


def _middle(odd: Bytes, f: Floats, s: Floats, v: Floats) -> Bytes:
    """The middle channel: (1 - s f) v in an odd sector, (s f + (1 - s)) v in an even one; `f` and `s` are used up."""
    s *= _signs(odd)
    f *= s
    f += np.subtract(_ONE, np.maximum(s, _ZERO, out=s), out=s)
    f *= v
    f *= _TO_BYTE
    return f.astype(np.uint8)


def _picked(sector: Bytes, high: Bytes, middle: Bytes, low: Bytes) -> Bytes:
    """RGB of hue sector 0 to 5: each channel is the largest in two sectors, the smallest in two, the middle else."""
    third = sector - (sector > 2).view(np.uint8) * np.uint8(3)
    high, middle = high ^ low, middle ^ low
    out_CHW = np.empty((3, *low.shape), np.uint8)
    largest = (sector - np.uint8(1) > 3, sector - np.uint8(1) < 2, sector - np.uint8(3) < 2)
    for channel, (is_high, third_of_middle) in enumerate(zip(largest, (1, 0, 2), strict=True)):
        out = np.bitwise_and(_mask(is_high), high, out=out_CHW[channel])
        out ^= _mask(third == third_of_middle) & middle
        out ^= low
    return out_CHW


def _mask(where: NDArray[np.bool_]) -> Bytes:
    """255 where true."""
    return np.negative(where.view(np.uint8))


def _signs(bits: Bytes) -> NDArray[np.int8]:
    """1 for 0, and -1 for 1."""
    signs: NDArray[np.int8] = np.subtract(1, bits << 1, dtype=np.int8)
    return signs
