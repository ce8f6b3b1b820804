import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import unic_pipe.stages.evaluate.knn as knn
from unic_pipe.stages.evaluate.knn import knn_probe, nearest


def scores_of(*task):
    return knn_probe(*task)[0]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = data.data.astype(np.float32), data.target.astype(np.int64)
    return x[:1437], y[:1437], x[1437:], y[1437:]


def test_scores_agree_with_another_implementation(digits):
    train_x, train_y, test_x, test_y = digits
    other = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = other.fit(train_x, train_y).score(test_x, test_y)
    scores = scores_of(*digits, [20])
    assert scores["top1_k20"] == pytest.approx(expected, abs=1e-9)
    assert 0.9 < scores["top1_k20"] < scores["top5_k20"] <= 1


def test_small_tiles_find_the_same_neighbours(digits, monkeypatch):
    train_x, _, test_x, _ = digits
    top, index = nearest(train_x, test_x, 50)
    scores = scores_of(*digits, [1, 10, 50])
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 37)
    monkeypatch.setattr(knn, "_TEST_ROWS", 64)
    monkeypatch.setattr(knn, "_VOTES", 500)
    tiled_top, tiled_index = nearest(train_x, test_x, 50)
    np.testing.assert_allclose(tiled_top, top, atol=1e-6)
    assert (tiled_index == index).float().mean() > 0.999  # equal similarities may change places
    assert scores_of(*digits, [1, 10, 50]) == pytest.approx(scores, abs=0.003)


def test_the_length_of_a_feature_does_not_count(digits):
    train_x, train_y, test_x, test_y = digits
    lengths = np.random.default_rng(0).uniform(0.1, 100, (len(train_x), 1)).astype(np.float32)
    assert scores_of(train_x * lengths, train_y, test_x, test_y, [10]) == pytest.approx(
        scores_of(*digits, [10]), abs=0.003
    )


def test_a_k_above_the_training_set_lets_everybody_vote():
    rng = np.random.default_rng(0)
    train_x, test_x = rng.normal(size=(12, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    train_y, test_y = np.arange(12) % 3, np.arange(9) % 3
    scores = scores_of(train_x, train_y, test_x, test_y, [12, 200])
    assert scores["top1_k12"] == scores["top1_k200"]


def test_there_is_no_top5_of_fewer_than_five_classes():
    x = np.eye(4, dtype=np.float32)
    assert scores_of(x, np.arange(4), x, np.arange(4), [1]) == {"top1_k1": 1.0}


def test_a_test_class_without_training_samples_is_wrong():
    x = np.eye(6, dtype=np.float32)
    labels = np.arange(6)
    scores = scores_of(x, labels, x, np.array([0, 1, 2, -1, -1, -1]), [1])
    assert scores == {"top1_k1": 0.5, "top5_k1": 0.5}


def test_a_zero_feature_is_no_nan():
    train_x = np.vstack([np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    scores = scores_of(train_x, np.array([0, 1, 2, 1]), train_x[:3], np.array([0, 1, 2]), [1, 4])
    assert scores["top1_k1"] == 1.0
