import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from unic_pipe.stages.evaluate import sgd

PAIRS = [(0.1, 1e-12), (1.0, 1e-4), (10.0, 1e-6), (100.0, 1e-4)]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int64)


def train(x, y, pairs, epochs=4, seed=0):
    return sgd.train(x, y, pairs, classes=10, epochs=epochs, seed=seed)


def test_pairs_trained_together_are_those_trained_alone(digits):
    x, y = digits
    for pair, together in zip(PAIRS, train(x, y, PAIRS), strict=True):
        (alone,) = train(x, y, [pair])
        np.testing.assert_allclose(together.weights_DK, alone.weights_DK, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.bias_K, alone.bias_K, rtol=1e-4, atol=1e-4)


def test_groups_that_memory_forces_change_nothing(digits, monkeypatch):
    x, y = digits
    whole = train(x, y, PAIRS)
    monkeypatch.setattr(sgd, "_NUMBERS", 1)
    for one, other in zip(whole, train(x, y, PAIRS), strict=True):
        np.testing.assert_allclose(one.weights_DK, other.weights_DK, rtol=1e-4, atol=1e-4)


def test_it_is_torchs_sgd_on_normalised_features(digits):
    x, y = digits
    lr, wd, epochs, seed = 3.0, 1e-3, 3, 7
    generator = torch.Generator().manual_seed(seed)
    first = (torch.rand(65, 10, generator=generator) * 2 - 1) / 8
    model = torch.nn.Linear(64, 10)
    with torch.no_grad():
        model.weight.copy_(first[:-1].T)
        model.bias.copy_(first[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=wd)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    rows, labels = F.normalize(torch.from_numpy(x), dim=1), torch.from_numpy(y)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order.split(1024):
            optimizer.zero_grad()
            F.cross_entropy(model(rows[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    (ours,) = train(x, y, [(lr, wd)], epochs, seed)
    np.testing.assert_allclose(ours.weights_DK.T, model.weight.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.bias_K, model.bias.detach(), rtol=1e-4, atol=1e-5)


def test_a_memory_map_gives_the_same_weights(digits, tmp_path):
    x, y = digits
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert (train(mapped, y, PAIRS[:1])[0].weights_DK == train(x, y, PAIRS[:1])[0].weights_DK).all()


def test_the_search_finds_a_pair_that_works_and_a_diverged_one_scores_nothing(digits):
    x, y = digits
    found = sgd.search(x[:900], y[:900], fraction=0.2, epochs=20, seed=0)
    assert found.validation_top1 > 0.8
    even = sgd.search(x[:900], np.repeat([0, 1], 450), fraction=0.2, epochs=0, seed=0)  # untrained: all pairs are equal
    assert (even.lr, even.wd) == pytest.approx((10**0.5, 1e-8))
    broken = sgd.SgdProbe(torch.full((64, 10), torch.nan), torch.zeros(10))
    assert sgd.validation_top1(broken, x, y) == 0
