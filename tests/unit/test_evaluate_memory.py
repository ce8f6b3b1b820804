"""What a probe keeps in memory does not depend on how many training rows there are, where that can be promised."""

import numpy as np
import torch

from unic_pipe.stages.evaluate import knn, paths
from unic_pipe.stages.evaluate.paths import FastProbe


def test_knn_in_small_tiles_finds_the_same_neighbours(monkeypatch):
    generator = np.random.default_rng(0)
    train, test = (generator.normal(size=(n, 8)).astype(np.float32) for n in (500, 90))
    whole, places = knn.nearest(train, test, 20)
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 64)
    monkeypatch.setattr(knn, "_TEST_ROWS", 16)
    tiled, tiled_places = knn.nearest(train, test, 20)
    torch.testing.assert_close(whole, tiled)
    assert (places == tiled_places).all()


def test_a_search_in_small_batches_chooses_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = (generator.normal(size=(400, 12)) + np.eye(4)[y].repeat(3, axis=1)).astype(np.float32)
    c_values = tuple(10.0**k for k in range(-4, 3))
    together = FastProbe(x, y).search(0.2, 0, (1e-5, 1e6), c_values)
    monkeypatch.setattr(paths, "_NUMBERS", 1)
    alone = FastProbe(x, y).search(0.2, 0, (1e-5, 1e6), c_values)
    assert alone.c == together.c
    np.testing.assert_allclose([t for _, t in alone.tried], [t for _, t in together.tried], atol=0.03)
