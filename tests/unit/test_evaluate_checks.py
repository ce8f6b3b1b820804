from dataclasses import replace

import numpy as np
import pytest

from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.evaluate.checks import check_task
from unic_pipe.stages.evaluate.features import Features


def features(labels, name="val", dims=3, left_out=0):
    x = np.random.default_rng(0).normal(size=(len(labels), dims)).astype(np.float32)
    return Features(name, x, np.array(labels, dtype=np.int64), left_out)


GOOD = features([3, 7, 3, 7], "train")


def refusal(train, test):
    with pytest.raises(UserError) as error:
        check_task(train, test)
    assert "\n" not in error.value.message
    return error.value.message


def test_a_good_pair_keeps_the_order_of_its_class_numbers():
    task = check_task(features([30, 7, 30, 7, 9], "train"), features([9, 30, 7]))
    assert task.train_labels_N.tolist() == [2, 0, 2, 0, 1]
    assert task.test_labels_M.tolist() == [1, 2, 0]
    assert task.classes == 3
    assert task.remarks == ()


def test_no_labels():
    message = refusal(GOOD, features([-1, -1]))
    assert message == "Dataset val has no labels to evaluate with."


def test_some_labels_missing():
    message = refusal(features([1, -1, 0], "train"), GOOD)
    assert message == "Dataset train: 1 of 3 samples have no label."


def test_one_class():
    assert refusal(features([5, 5], "train"), features([5])) == (
        "Dataset train has a single class (5): a probe needs at least two."
    )


def test_no_samples():
    assert refusal(GOOD, features([])) == "Dataset val has no usable samples."
    assert "(4 of 4 rows could not be used)" in refusal(features([], "train", left_out=4), GOOD)


def test_nan_and_infinite_features():
    bad = features([3, 7, 3])
    bad.x_ND[0, 1], bad.x_ND[2, 0] = np.nan, np.inf
    assert refusal(GOOD, bad) == "Dataset val: features of 2 of 3 samples are NaN or infinite."


def test_more_classes_at_test_than_in_training():
    assert refusal(GOOD, features([3, 7, 8])) == "Test set val has 3 classes, training set train only 2."


def test_no_class_in_common():
    assert "no class in common" in refusal(GOOD, features([1, 2]))


def test_other_dimensions():
    assert "3 dimensions, those of val 4" in refusal(GOOD, features([3, 7], dims=4))


def test_unseen_classes_are_counted_and_said():
    task = check_task(features([0, 1, 2, 0], "train"), features([0, 5, 5, 2]))
    assert task.test_labels_M.tolist() == [0, -1, -1, 2]
    unseen = "2 of 4 samples of val belong to 1 class that training never shows (5): counted as wrong"
    most = "so 50.0 % is the most that can be right."
    assert task.remarks == (f"{unseen}, {most}", "1 of 3 classes has no sample in val (1).")


def named(labels, classes, name="val"):
    return replace(features(labels, name), classes=classes)


def test_classes_are_matched_by_name():
    train = named([0, 1, 2, 3], ("ant", "bee", "cat", "dog"), "train")
    task = check_task(train, named([0, 1, 2], ("ant", "cat", "dog")))
    assert task.test_labels_M.tolist() == [0, 2, 3]
    assert task.test_classes_M.tolist() == [0, 1, 2]
    assert task.remarks == ("1 of 4 classes has no sample in val (bee).",)
    task = check_task(train, named([0, 1, 2], ("bee", "cat", "elk")))
    assert task.test_labels_M.tolist() == [1, 2, -1]
    assert "never shows (elk)" in task.remarks[0]
    with pytest.raises(UserError, match="no class in common"):
        check_task(train, named([0, 1], ("elk", "fox")))
    more = check_task(named([0, 1], ("bee", "cat"), "train"), named([0, 1, 2], ("bee", "cat", "elk")))
    assert more.test_labels_M.tolist() == [0, 1, -1]  # one class more is counted, too


def test_numbers_are_places_among_names_and_that_is_said():
    train = named([0, 1, 2], ("ant", "bee", "cat"), "train")
    task = check_task(train, features([2, 1]))
    assert task.test_labels_M.tolist() == [2, 1]
    assert "1 is bee, 2 is cat" in task.remarks[0]
    with pytest.raises(UserError, match="cannot be places among them"):
        check_task(train, features([1, 2, 3]))
    with pytest.raises(UserError, match="cannot be places among them"):
        check_task(features([0, 1], "train"), named([0, 1], ("ant", "bee", "cat")))


def test_numbers_that_begin_at_one_and_at_zero_are_said():
    task = check_task(features([1, 2, 3], "train"), features([0, 1, 2]))
    assert any("samples.datasets.train.first_class: 1" in remark for remark in task.remarks)


def test_rows_without_features_are_counted_and_said():
    task = check_task(GOOD, features([3, 7], left_out=5))
    assert task.remarks == ("5 rows of val have no usable features: left out.",)
