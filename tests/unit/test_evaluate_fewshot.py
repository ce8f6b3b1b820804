import numpy as np
import pytest
from sklearn.datasets import load_digits

from unic_pipe.stages.evaluate.fewshot import draw, few_shot, nearest_centroid


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int64)


def test_a_draw_has_so_many_of_each_class_and_all_of_a_small_one():
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    rows = draw(labels, 5, seed=0, number=0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert len(set(rows.tolist())) == 13
    assert (rows == draw(labels, 5, 0, 0)).all()
    assert (rows != draw(labels, 5, 0, 1)).any()
    assert (rows != draw(labels, 5, 1, 0)).any()


def test_more_shots_score_more_and_draws_differ(digits):
    x, y = digits
    draws = few_shot(x[:900], y[:900], x[900:], y[900:], shots=(1, 10), draws=3, seed=0)
    for name in ("centroid", "logistic"):
        one, ten = (np.array([scores[f"top1_{name}_{k}shot"] for scores in draws]) for k in (1, 10))
        assert 0.3 < one.mean() < ten.mean()
        assert ten.mean() > 0.8
        assert one.std() > 0


def test_the_nearest_centroid_is_by_direction():
    train = np.array([[1, 0], [3, 0.1], [0, 1], [0.1, 9]], dtype=np.float32)
    test = np.array([[100, 1], [0.01, 0.5]], dtype=np.float32)
    assert nearest_centroid(train, np.array([0, 0, 1, 1]), test).tolist() == [0, 1]
