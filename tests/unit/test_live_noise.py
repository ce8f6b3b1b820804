"""What a calibrated codec may add to a teacher's features, in the units of the live check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calibrated_cache import COUNT, ROWS, SHAPES, D, written

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.extraction.live_check import _codec_noise, _scales
from unic_pipe.schemas.config import TokenType


def sparse(token: str, block: int) -> np.ndarray:
    """Two busy dimensions with nearly all of the variance; six that hardly ever fire, and cost nothing to store."""
    random, count = np.random.default_rng([3, block]), min(ROWS, COUNT - block * ROWS)
    values = random.normal(size=(count, *SHAPES[token]))
    values[..., 2:] *= 0.1 * (random.random((*values.shape[:-1], D - 2)) < 0.02)
    return values.astype(np.float32)


@pytest.mark.parametrize("token", ["cls", "patch"])
def test_the_loss_that_was_measured_is_allowed(token: TokenType, tmp_path: Path) -> None:
    """The codec's target is of standardized dimensions: here its loss of the features themselves is twice as much."""
    written(tmp_path, "scalar", sparse, far=False)
    cache = FeatureCache.open(tmp_path)
    mean_D, var_D = _scales(cache, token, 3)
    block = cache.read_block(0, token, 0)
    difference = (block.values - sparse(token, 0))[block.valid].reshape(-1, D)
    lost = np.sqrt(np.square(difference).sum(axis=1).mean() / var_D.sum())
    allowed = _codec_noise(cache, 0, token, 0, mean_D, var_D)
    assert lost > 1.5 * 10 ** (-15 / 20)
    assert allowed == pytest.approx(lost, rel=0.3)  # measured on a few rows of a unit
