import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.linear import matrix_of
from unic_pipe.stages.evaluate.logistic import Probe
from unic_pipe.stages.evaluate.paths import FastProbe
from unic_pipe.stages.evaluate.rotated import Rotation
from unic_pipe.stages.evaluate.scoring import accuracy, middle_of_best, validation_split, without_validation
from unic_pipe.stages.evaluate.softmax import Problem, Stop, fit

C_VALUES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int64)


def search(x, y, c_values=None, seed=0):
    return FastProbe(x, y).search(0.2, seed, (1e-5, 1e6), c_values)


def test_the_probe_of_raw_digits_scores_as_it_should(digits):
    x, y = digits
    probe = FastProbe(x[:1437], y[:1437])
    found = probe.search(0.2, 0, (1e-5, 1e6))
    assert found.converged
    assert found.validation_top1 > 0.95
    assert found.validation_top1 == max(top1 for _, top1 in found.tried)
    assert probe.fit(found.c)
    scores = accuracy(probe.predict(x[1437:]), y[1437:], y[1437:])
    assert scores["top1"] >= 0.9
    assert abs(scores["top1"] - scores["per_class"]) < 0.02


def objective(probe, x, y, c):
    """scikit-learn's, divided by C N, of weights that sum to 0 over the classes."""
    matrix = matrix_of(probe, x.shape[1])
    weights = matrix[:, :-1] - matrix[:, :-1].mean(axis=0)
    logits = x.astype(np.float64) @ weights.T + matrix[:, -1]
    return (logsumexp(logits, axis=1) - logits[np.arange(len(x)), y]).mean() + (weights**2).sum() / (2 * c * len(x))


@pytest.mark.parametrize("c", [1e-4, 0.1, 1e3])
@pytest.mark.parametrize("rows", [40, 600])  # fewer and more than dimensions
def test_a_fit_reaches_the_least_objective_of_scikit_learn(digits, c, rows):
    x, y = digits[0] * 5 + 2, digits[1]  # badly placed on purpose
    fast = FastProbe(x[:rows], y[:rows])
    assert fast.fit(c)
    plain = Probe(x[:rows], y[:rows], tolerance=1e-9, iterations=100_000)
    plain.fit(c)
    ours, theirs = (objective(p, x[:rows], y[:rows], c) for p in (fast, plain))
    assert ours <= theirs * (1 + 1e-6)
    assert np.mean(fast.predict(x[rows:]) == plain.predict(x[rows:])) >= 0.999


def test_two_classes_are_scikit_learns_problem_too(digits):
    x, y = digits[0], (digits[1] > 4).astype(np.int64)
    fast = FastProbe(x[:500], y[:500])
    fast.fit(0.1)
    plain = LogisticRegression(C=0.1, tol=1e-9, max_iter=100_000).fit(x[:500].astype(np.float64), y[:500])
    logits = fast.scores(x[500:])
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], plain.decision_function(x[500:]), rtol=1e-4, atol=1e-4)


def test_values_fitted_together_are_those_fitted_alone(digits):
    x, y = digits[0][:400], digits[1][:400]
    turn = Rotation.of(x, "cpu")
    problem = Problem(turn.apply(x, torch.float64), torch.from_numpy(y), 10, turn)
    c = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)
    together = fit(problem, c, problem.zeros(4), Stop(1e-9))
    assert together.converged_B.all()
    for place in range(4):
        alone = fit(problem, c[place : place + 1], problem.zeros(1), Stop(1e-9))
        ours, theirs = (
            problem.objective(problem.logits(w), w, problem.penalty(c[place : place + 1]))[0]
            for w in (together.weights_ABK[:, place : place + 1], alone.weights_ABK)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)
        assert (
            problem.logits(together.weights_ABK)[:, place].argmax(1)
            == problem.logits(alone.weights_ABK)[:, 0].argmax(1)
        ).all()


def test_centring_and_scaling_leave_the_problem_of_raw_features_unchanged(digits):
    x, y = digits
    raw = x[:, ::2] * 5 + 2  # badly placed on purpose
    probe = Probe(raw[:300], y[:300])
    probe.fit(0.01)
    plain = LogisticRegression(C=0.01, tol=1e-7, max_iter=20_000).fit(raw[:300].astype(np.float64), y[:300])
    assert np.mean(probe.predict(raw[300:]) == plain.predict(raw[300:].astype(np.float64))) > 0.998


def test_the_same_data_and_seed_give_the_same_search(digits):
    x, y = digits
    assert search(x[:700], y[:700], C_VALUES, 3) == search(x[:700], y[:700], C_VALUES, 3)


def test_of_equally_good_values_the_middle_one_wins():
    x = np.repeat(np.array([[-1.0], [1.0]], dtype=np.float32), 20, axis=0)
    y = np.repeat(np.array([0, 1]), 20)
    assert C_VALUES == (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    assert search(x, y, C_VALUES).c == search(x, y, C_VALUES[::-1]).c == 1.0
    assert search(x, y, C_VALUES[:5]).c == 0.1
    assert search(x, y).c == pytest.approx(10**0.5)


def test_the_middle_is_that_of_the_tied_ones_and_one_stray_does_not_move_it():
    scores = {(1e-5,): 0.9, (1e-2,): 1.0, (1e-1,): 1.0, (1.0,): 1.0, (10.0,): 0.9, (1e6,): 0.99}
    assert middle_of_best(scores) == (1e-1,)
    assert middle_of_best(scores | {(1e6,): 1.0}) in {(1e-1,), (1.0,)}
    assert middle_of_best({(2.0, 3.0): 0.1, (1.0, 1.0): 0.0}) == (2.0, 3.0)
    assert middle_of_best({(lr, wd): 1.0 for lr in (0.1, 1.0, 10.0) for wd in (1e-9, 1e-6, 1e-3)}) == (1.0, 1e-6)


def test_one_of_each_rare_class_does_not_make_the_weakest_probe_and_is_said():
    """Only the frequent class is in the validation part, so every C is right about all of it."""
    rng = np.random.default_rng(0)
    centres = np.eye(4, dtype=np.float32)
    y = np.array([0] * 30 + [1, 2, 3])
    x = centres[y] + 0.01 * rng.standard_normal((33, 4)).astype(np.float32)
    probe = FastProbe(x, y)
    found = probe.search(0.2, 0, (1e-5, 1e6))
    assert {top1 for _, top1 in found.tried} == {1.0}
    probe.fit(found.c)
    assert (probe.predict(np.repeat(centres, 5, axis=0)) == np.repeat(np.arange(4), 5)).all()
    (said,) = without_validation(y, ("ant", "bee", "cat", "dog"))
    assert said.startswith("3 of 4 classes have a single training sample (bee, cat, dog)")
    assert without_validation(np.repeat(y, 2), ("ant", "bee", "cat", "dog")) == ()


def test_too_few_iterations_are_reported(digits, monkeypatch):
    x, y = digits
    monkeypatch.setattr("unic_pipe.stages.evaluate.softmax.MAX_NEWTON", 1)
    assert not search(x[:300], y[:300], (1.0,)).converged


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
    found = search(x, y, C_VALUES)
    assert found.validation_top1 == 0.75


def test_per_class_accuracy_weighs_classes_equally():
    predicted = np.array([0, 0, 0, 0, 0])
    labels = np.array([0, 0, 0, 0, 1])
    assert accuracy(predicted, labels, labels) == {"top1": 0.8, "per_class": 0.5}


def test_classes_that_training_never_shows_count_as_wrong_each_on_its_own():
    labels = np.array([0, 0, -1, -1])  # the last two: classes 7 and 9 of the test set
    scores = accuracy(np.array([0, 0, 0, 0]), labels, np.array([0, 0, 7, 9]))
    assert scores == {"top1": 0.5, "per_class": pytest.approx(1 / 3)}


@pytest.mark.parametrize("rows", [30, 200])
def test_dead_dimensions_and_copied_samples_do_not_break_the_fit(rows):
    generator = np.random.default_rng(0)
    x = np.zeros((rows, 128), dtype=np.float32)
    x[:, :3] = np.repeat(generator.normal(size=(10, 3)), rows // 10, axis=0)
    y = np.repeat(np.arange(10) % 2, rows // 10)
    fast = FastProbe(x, y)
    assert fast.fit(1.0)
    plain = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit(x.astype(np.float64), y)
    logits = fast.scores(x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], plain.decision_function(x), rtol=1e-4, atol=1e-4)


def test_without_an_eigensolver_the_solution_is_the_same(digits, monkeypatch):
    x, y = digits[0][:300], digits[1][:300]
    whole = FastProbe(x, y)
    whole.fit(0.1)

    def failing(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    plain = FastProbe(x, y)
    assert plain.fit(0.1)
    np.testing.assert_allclose(plain.scores(x), whole.scores(x), rtol=1e-3, atol=1e-3)
