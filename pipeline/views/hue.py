"""Turning the hue of uint8 images: torchvision v2's arithmetic to the last bit, in a fraction of its time.

torchvision goes RGB -> HSV -> RGB in float32 and picks among v, p, q, t by index and gather, which take most of the
whole recipe's time. Here the same IEEE operations run in the same order, in NumPy, and the picking is done on bytes with
masks: every intermediate that is rounded is rounded as there (the tests compare all colours).

Formulas: A. R. Smith, Color gamut transform pairs, SIGGRAPH 1978.

Shapes: H, W pixels; C = 3 channels (RGB).
"""

import numpy as np
from numpy.typing import NDArray

_F = np.float32
_TO_FLOAT = _F(1.0 / 255.0)
_TO_BYTE = _F(255.0 + 1.0 - 1e-3)
"""torchvision's factor: the largest float below 1 must not become 256."""
_ONE, _ZERO = _F(1), _F(0)


def turn_hue(image_CHW: NDArray[np.uint8], turn: float) -> NDArray[np.uint8]:
    """The image with every pixel's hue moved by `turn`, in -.5 to .5 of the colour circle; uint8 (3, H, W)."""
    x_CHW = np.multiply(image_CHW, _TO_FLOAT, dtype=_F)
    r, g, b = x_CHW
    v = np.maximum(np.maximum(r, g), b)
    span = v - np.minimum(np.minimum(r, g), b)
    # 1 where a pixel is grey: there the span is 0, and hue and saturation come out as 0 whatever they are divided by.
    grey = (span == _ZERO).astype(_F)
    s = span / (v + grey)
    np.subtract(v, x_CHW, out=x_CHW)
    np.divide(x_CHW, span + grey, out=x_CHW)
    h6 = _hue(x_CHW, turn)
    sector = np.floor(h6)
    np.subtract(h6, sector, out=h6)
    return _picked(sector.astype(np.uint8), h6, s, v)


def _hue(distance_CHW: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    """Six times the turned hue, in 0 to 6; `distance_CHW` is how far each channel is below the largest, over the span."""
    rc, gc, bc = distance_CHW
    red = (rc == _ZERO).astype(_F)
    green = (gc == _ZERO).astype(_F) * (_ONE - red)
    blue = (_ONE - red) - green
    h: NDArray[np.float32] = (bc - gc) * red
    h += (rc + _F(2) - bc) * green
    h += (gc + _F(4) - rc) * blue
    h *= _F(1.0 / 6.0)
    h += _ONE
    h -= np.floor(h)
    h += _F(turn)
    h -= np.floor(h)
    h *= _F(6)
    return h


def _picked(
    sector: NDArray[np.uint8], f: NDArray[np.float32], s: NDArray[np.float32], v: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """RGB bytes of hue sector 0 to 6 (6 is 0 again) and position f in it, saturation s and value v."""
    sf, rest = s * f, _ONE - s
    q = _bytes((_ONE - sf) * v)
    sf += rest
    t, p, v8 = _bytes(sf * v), _bytes(rest * v), _bytes(v)
    in0, in1, in2, in3, in4, in5 = (np.negative((sector == k).view(np.uint8)) for k in range(6))
    in0 |= np.negative((sector == 6).view(np.uint8))
    out_CHW = np.empty((3, *v.shape), np.uint8)
    np.bitwise_or(v8 & (in0 | in5) | q & in1, p & (in2 | in3) | t & in4, out=out_CHW[0])
    np.bitwise_or(v8 & (in1 | in2) | t & in0, q & in3 | p & (in4 | in5), out=out_CHW[1])
    np.bitwise_or(v8 & (in3 | in4) | p & (in0 | in1), t & in2 | q & in5, out=out_CHW[2])
    return out_CHW


def _bytes(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in 0 to 1 as bytes, clamped; `x` is used up."""
    np.minimum(np.maximum(x, _ZERO, out=x), _ONE, out=x)
    return np.multiply(x, _TO_BYTE, out=x).astype(np.uint8)
