import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from schemas.errors import UserError
from stages.evaluate.logistic import Probe, accuracy, search, validation_split

C_VALUES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int64)


def test_the_probe_of_raw_digits_scores_as_it_should(digits):
    x, y = digits
    found = search(x[:1437], y[:1437], C_VALUES, 0.2, seed=0)
    assert found.converged
    assert found.validation_top1 > 0.95
    probe = Probe(x[:1437], y[:1437])
    probe.fit(found.c)
    scores = accuracy(probe.predict(x[1437:]), y[1437:], y[1437:])
    assert scores["top1"] > 0.9
    assert abs(scores["top1"] - scores["per_class"]) < 0.02


def test_centring_and_scaling_leave_the_problem_of_raw_features_unchanged(digits):
    x, y = digits
    raw = x[:, ::2] * 5 + 2  # badly placed on purpose
    probe = Probe(raw[:300], y[:300])
    probe.fit(0.01)
    plain = LogisticRegression(C=0.01, tol=1e-7, max_iter=20_000).fit(raw[:300].astype(np.float64), y[:300])
    assert np.mean(probe.predict(raw[300:]) == plain.predict(raw[300:].astype(np.float64))) > 0.998


def test_the_same_data_and_seed_give_the_same_search_and_predictions(digits):
    x, y = digits
    assert search(x[:700], y[:700], C_VALUES, 0.2, 3) == search(x[:700], y[:700], C_VALUES, 0.2, 3)


def test_the_strongest_regularisation_of_equally_good_ones_is_chosen():
    x = np.repeat(np.array([[-1.0], [1.0]], dtype=np.float32), 20, axis=0)
    y = np.repeat(np.array([0, 1]), 20)
    assert search(x, y, C_VALUES, 0.2, 0).c == C_VALUES[0]


def test_too_few_iterations_are_reported(digits, monkeypatch):
    x, y = digits
    monkeypatch.setattr("stages.evaluate.logistic.MAX_ITERATIONS", 3)
    assert not search(x[:300], y[:300], (1.0,), 0.2, 0).converged


def test_the_split_takes_a_fifth_of_each_class_and_leaves_both_sides_of_tiny_ones():
    labels = np.repeat([0, 1, 2, 3, 4], [50, 3, 2, 1, 4])
    np.random.default_rng(0).shuffle(labels)
    held = validation_split(labels, 0.2, seed=1)
    assert np.bincount(labels[held], minlength=5).tolist() == [10, 1, 1, 0, 1]
    assert np.bincount(labels[~held], minlength=5).tolist() == [40, 2, 1, 1, 3]


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    labels = np.arange(200) % 4
    assert (validation_split(labels, 0.2, 5) == validation_split(labels, 0.2, 5)).all()
    assert (validation_split(labels, 0.2, 5) != validation_split(labels, 0.2, 6)).any()


def test_even_a_large_fraction_leaves_something_to_train_on():
    held = validation_split(np.array([0, 0, 1, 1, 1]), 0.99, 0)
    assert not held.all()
    assert held.sum() == 3


def test_one_sample_a_class_is_refused():
    with pytest.raises(UserError, match="single sample") as error:
        validation_split(np.arange(7), 0.2, 0)
    assert "knn" in (error.value.hint or "")


def test_features_that_are_all_constant_do_not_break_the_fit():
    x = np.full((40, 3), 2.5, dtype=np.float32)
    y = np.repeat([0, 1], [30, 10])
    found = search(x, y, C_VALUES, 0.2, 0)
    assert found.validation_top1 == 0.75


def test_per_class_accuracy_weighs_classes_equally():
    predicted = np.array([0, 0, 0, 0, 0])
    labels = np.array([0, 0, 0, 0, 1])
    assert accuracy(predicted, labels, labels) == {"top1": 0.8, "per_class": 0.5}


def test_classes_that_training_never_shows_count_as_wrong_each_on_its_own():
    labels = np.array([0, 0, -1, -1])  # the last two: classes 7 and 9 of the test set
    scores = accuracy(np.array([0, 0, 0, 0]), labels, np.array([0, 0, 7, 9]))
    assert scores == {"top1": 0.5, "per_class": pytest.approx(1 / 3)}
