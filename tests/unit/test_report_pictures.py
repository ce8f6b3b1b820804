"""Principal components of patch tokens as colours."""

from __future__ import annotations

import numpy as np

from unic_pipe.stages.report.pictures import principal_colours


def test_alike_tokens_have_one_colour_and_others_another() -> None:
    """Three kinds of tokens in a known pattern, far apart and slightly noisy."""
    random = np.random.default_rng(0)
    kinds_NRC = random.integers(0, 3, (4, 6, 5))
    centres = 5 * random.standard_normal((3, 20))
    patch_NPD = centres[kinds_NRC].reshape(4, 30, 20) + 0.01 * random.standard_normal((4, 30, 20))
    colours = principal_colours(patch_NPD.astype(np.float32), (6, 5))
    assert colours.shape == (4, 6, 5, 3)
    means = np.stack([colours[kinds_NRC == k].mean(0) for k in range(3)])
    for k in range(3):
        assert np.abs(colours[kinds_NRC == k][:, :2].astype(float) - means[k, :2]).max() < 8
    distances = np.abs(means[:, None, :2] - means[None, :, :2]).max(-1)
    assert distances[np.triu_indices(3, 1)].min() > 60
    flipped = principal_colours(-patch_NPD.astype(np.float32), (6, 5))
    assert np.abs(flipped.astype(int) + colours - 255).max() <= 1  # the axes stay, so the colours are the opposite


def test_few_dimensions_and_constant_tokens_are_shown() -> None:
    assert principal_colours(np.ones((2, 4, 2), np.float32), (2, 2)).shape == (2, 2, 2, 3)
    assert principal_colours(np.ones((1, 1, 8), np.float32), (1, 1)).shape == (1, 1, 1, 3)
