"""Theia's standardization of targets (arXiv 2407.20179), as its official code does it.

Beside `standardization`: the std is unbiased, and mean and std are rounded to bfloat16, which moves targets by some
percent of a std. A constant dimension has the least std instead of 0, with which its targets would be infinite.

Legend: D dimensions.
"""

import numpy as np

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.statistics import STD_FLOOR
from unic_pipe.schemas.features import TokenStatistics


def theia_standardization(statistics: TokenStatistics) -> tuple[Doubles, Doubles]:
    """(mean_D, std_D), values of bfloat16 in float64; a target is (x - mean) / std."""
    std_D = np.sqrt(np.array(statistics.m2) / max(statistics.count - 1, 1))
    return to_bfloat16(np.array(statistics.mean)), to_bfloat16(np.maximum(std_D, STD_FLOOR))


def to_bfloat16(values: Doubles) -> Doubles:
    """The nearest values of bfloat16, the even one of two (by way of float32)."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)
