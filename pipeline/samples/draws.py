"""Random numbers that depend on what they are for, never on when, where or in which order they are drawn.

A draw is a pure function of (seed, purpose, epoch, row, lane), mixed by splitmix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014). So a resumed run, another batch split or another world size
sees the same numbers.

Shapes: N rows, L lanes (independent draws of one row).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, splitmix64's increment


class Purpose(IntEnum):
    """What a draw decides; different purposes are independent. The numbers are part of a student's identity."""

    BLOCK_ORDER = 1
    ROW_ORDER = 2
    VIEW_ORDER = 3
    DROP_TEACHER = 4
    DROP_PATH = 5
    CLS_VIEW_ORDER = 6
    IMAGE_SIZE = 7
    MASK = 8
    NOISE = 9


def uniforms(seed: int, purpose: Purpose, epoch: int, rows_N: NDArray[np.int64], lanes: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, (N, L) float64; equal rows get equal numbers."""
    key = np.uint64(0)
    for part in (seed, int(purpose), epoch):
        key = _mix(np.array([(int(key) + (part & _MASK) + _GOLDEN) & _MASK], dtype=np.uint64))[0]
    golden = np.uint64(_GOLDEN)
    state_N = _mix(key + golden * (rows_N.astype(np.uint64) + np.uint64(1)))
    lane_L = golden * np.arange(1, lanes + 1, dtype=np.uint64)
    bits_NL = _mix(state_N[:, None] + lane_L[None, :])
    return (bits_NL >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: Purpose, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 … `count` - 1 (int64), the same in every version of NumPy."""
    draws_N = uniforms(seed, purpose, epoch, np.arange(count, dtype=np.int64), 1)[:, 0]
    return np.argsort(draws_N, kind="stable").astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function: a bijection of 64 bits in which every input bit moves half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
