"""Exact per-dimension moments: count, mean and M2 (sum of squared deviations), in float64; and what storing them lost.

Legend: M tokens, D dimensions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOMENTS_MAGIC = b"UNICMOM"
_MAGICS = {b"UNICMOM1": 2, b"UNICMOM2": 3}
"""With the number of vectors; files of version 1 do not know the noise."""
_HEAD = struct.Struct("<8sqq")
_PIECE_VALUES = 1 << 20

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of a set of tokens."""

    count: int
    mean_D: Doubles
    m2_D: Doubles
    noise_D: Doubles | None = None
    """Sum of squared differences between the original and the stored tokens, if it is known."""

    def to_bytes(self) -> bytes:
        """Magic, count, D, mean, M2, and the noise if it is known; little-endian."""
        vectors = [v for v in (self.mean_D, self.m2_D, self.noise_D) if v is not None]
        magic = next(magic for magic, count in _MAGICS.items() if count == len(vectors))
        body = b"".join(np.ascontiguousarray(v, "<f8").tobytes() for v in vectors)
        return _HEAD.pack(magic, self.count, len(self.mean_D)) + body

    @staticmethod
    def from_bytes(raw: bytes) -> Moments:
        """The inverse of `to_bytes`, of verified bytes."""
        magic, count, dims = _HEAD.unpack_from(raw)
        vectors = _MAGICS.get(magic, 0)
        if not vectors or len(raw) != _HEAD.size + 8 * vectors * dims:
            raise ValueError("not a moments sidecar")
        return Moments(count, *np.frombuffer(raw, "<f8", offset=_HEAD.size).reshape(vectors, dims))


def moments_of(values_MD: NDArray[Any]) -> Moments:
    """Moments of M tokens, by two passes over pieces that are shifted by the first token and then merged.

    The shift makes constant dimensions exact: their mean is the value and their M2 is 0.
    """
    dims = values_MD.shape[1]
    total = Moments(0, np.zeros(dims), np.zeros(dims))
    if not len(values_MD):
        return total
    pivot_D = values_MD[0].astype(np.float64)
    step = max(1, _PIECE_VALUES // dims)
    for start in range(0, len(values_MD), step):
        piece_MD = values_MD[start : start + step] - pivot_D
        mean_D = piece_MD.sum(axis=0) / len(piece_MD)
        piece_MD -= mean_D
        np.square(piece_MD, out=piece_MD)
        total = merge(total, Moments(len(piece_MD), mean_D + pivot_D, piece_MD.sum(axis=0)))
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union (Chan, Golub and LeVeque, 1979)."""
    if not a.count or not b.count:
        return a if a.count else b
    count = a.count + b.count
    delta_D = b.mean_D - a.mean_D
    noise_D = a.noise_D + b.noise_D if a.noise_D is not None and b.noise_D is not None else None
    return Moments(
        count,
        a.mean_D + delta_D * (b.count / count),
        a.m2_D + b.m2_D + np.square(delta_D) * (a.count * (b.count / count)),
        noise_D,
    )
