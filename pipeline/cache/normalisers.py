"""How targets are normalised by the exact statistics of a cache: what stands for mean and std in (x - mean) / std.

Legend: D dimensions.
"""

from __future__ import annotations

import numpy as np

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.statistics import STD_FLOOR, standardization
from unic_pipe.pipeline.cache.theia import theia_standardization
from unic_pipe.schemas.features import TokenStatistics
from unic_pipe.schemas.losses import Normaliser

BATCH_STD_FLOOR = 1e-3
"""Least std by which `batch` divides, as in DUNE's code."""


def normalisation(statistics: TokenStatistics, how: Normaliser) -> tuple[Doubles, Doubles]:
    """(mean_D, std_D) in float64 of one of the normalisers that rest on exact statistics (`schemas.losses.EXACT`).

    `phi_s`: the same std for all dimensions, sqrt(sum of M2 / (count * D)), which is 1 / φ; what is left of PHI-S is a
    rotation (`pipeline.cache.phi_s`).

    Raises:
        UserError: there is no valid token.
    """
    mean_D, std_D = standardization(statistics)
    if how == "theia":
        return theia_standardization(statistics)
    if how == "phi_s":
        variance_D = np.array(statistics.m2) / statistics.count
        return mean_D, np.full_like(std_D, max(np.sqrt(variance_D.mean()), STD_FLOOR))
    return mean_D, std_D
