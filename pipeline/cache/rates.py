"""How few bits could do: the rate-distortion function of Gaussian features.

Legend: N rows, P tokens, D dimensions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def gaussian_bits(variance_D: NDArray[np.float64], snr_db: float) -> float:
    """Bits per value of independent Gaussian components at a signal-to-noise ratio, by reverse water-filling.

    R = mean over d of max(0, log2(variance_d / level) / 2), where the level is such that the mean of min(variance_d,
    level) is the distortion (Cover and Thomas, Elements of Information Theory, theorem 10.3.3).
    """
    variance_D = np.maximum(np.asarray(variance_D, np.float64), 0)
    distortion = float(variance_D.mean()) * 10 ** (-snr_db / 10)
    low, high = 0.0, float(variance_D.max(initial=0.0))
    if not 0 < distortion < float(variance_D.mean()):
        return 0.0
    for _ in range(200):
        level = (low + high) / 2 if low == 0 or high / low < 4 else math.sqrt(low * high)
        low, high = (level, high) if float(np.minimum(variance_D, level).mean()) < distortion else (low, level)
    active_D = variance_D[variance_D > high]
    return float(np.log2(active_D / high).sum() / 2 / len(variance_D))
