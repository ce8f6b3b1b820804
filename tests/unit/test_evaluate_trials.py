import math
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from probe_search import compare_search
from sklearn.datasets import load_digits

from unic_pipe.schemas.errors import DamagedError, UserError
from unic_pipe.stages.evaluate.trials import best_of_trials, search_logistic, search_sgd

RANGES = {"lr": (0.1, 100.0), "wd": (1e-12, 1e-4)}
STUDY = """
import math, os, signal, sys
from pathlib import Path
from unic_pipe.stages.evaluate.trials import best_of_trials
def score(p):
    if Path(sys.argv[2]).exists() and len(open(sys.argv[2]).read()) >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
    open(sys.argv[2], "a").write("x")
    return -abs(math.log10(p["lr"]) - 1) - abs(math.log10(p["wd"]) + 6)
best_of_trials(Path(sys.argv[1]), {"lr": (0.1, 100.0), "wd": (1e-12, 1e-4)}, score, trials=20, seed=4)
"""


def score(p):
    return -abs(math.log10(p["lr"]) - 1) - abs(math.log10(p["wd"]) + 6)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32)[:600], data.target.astype(np.int64)[:600]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    """Beyond TPE's ten random trials, so that what it proposes depends on what it has seen."""
    command = [sys.executable, "-c", STUDY, str(tmp_path / "killed.sqlite"), str(tmp_path / "count")]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    asked = []

    def counted(p):
        asked.append(p)
        return score(p)

    resumed = best_of_trials(tmp_path / "killed.sqlite", RANGES, counted, trials=20, seed=4)
    assert len(asked) == 8
    assert resumed == best_of_trials(tmp_path / "whole.sqlite", RANGES, score, trials=20, seed=4)


def test_a_finished_study_fits_nothing(tmp_path):
    first = best_of_trials(tmp_path / "s.sqlite", RANGES, score, trials=3, seed=0)

    def forbidden(p):
        raise AssertionError("a finished study ran another trial")

    assert best_of_trials(tmp_path / "s.sqlite", RANGES, forbidden, trials=3, seed=0) == first


def test_of_equally_good_trials_the_middle_one_is_taken(tmp_path):
    best, value, done = best_of_trials(
        tmp_path / "s.sqlite", {"c": (1e-5, 1e6)}, lambda p: float(p["c"] > 1), trials=15, seed=0
    )
    tied = sorted(p["c"] for p, score in done.values() if score == 1)
    assert value == 1
    assert len(tied) > 2
    assert tied.index(best["c"]) == len(tied) // 2


def test_an_edited_or_damaged_study_is_not_continued(tmp_path):
    file = tmp_path / "s.sqlite"
    best_of_trials(file, RANGES, score, trials=3, seed=0)
    raw = file.read_bytes()
    with closing(sqlite3.connect(file)) as edited, edited:
        edited.execute("UPDATE trial_values SET value = value + 1 WHERE trial_id = 2")
    with pytest.raises(DamagedError, match=r"s\.sqlite: trial 1 was edited") as caught:
        best_of_trials(file, RANGES, score, trials=4, seed=0)
    assert f"rm {file}" in caught.value.hint
    file.write_bytes(raw[:5000] + bytes(5000) + raw[10000:])
    with pytest.raises(DamagedError, match=r"s\.sqlite: "):
        best_of_trials(file, RANGES, score, trials=4, seed=0)
    file.write_bytes(raw)
    with closing(sqlite3.connect(file)) as older, older:  # as it was before trials had seals
        older.execute("DELETE FROM study_user_attributes")
        older.execute("DELETE FROM trial_user_attributes")
    assert len(best_of_trials(file, RANGES, score, trials=4, seed=0)[2]) == 4


def test_both_classifiers_are_searched_by_trials(digits, tmp_path):
    x, y = digits
    found = search_logistic(x, y, tmp_path / "a.sqlite", (1e-3, 1e2), fraction=0.2, trials=5, seed=0)
    assert len(found.tried) == 5
    assert 1e-3 <= found.c <= 1e2
    assert found.validation_top1 == max(top1 for _, top1 in found.tried) > 0.9
    pair = search_sgd(x, y, tmp_path / "b.sqlite", fraction=0.2, epochs=10, trials=3, seed=0)
    assert 0.1 <= pair.lr <= 100
    assert pair.validation_top1 > 0.5


def test_the_fast_search_is_compared_with_trials_on_the_same_features(digits):
    x, y = digits
    found = compare_search(x[:450], y[:450], x[450:], y[450:], c_range=(1e-3, 1e2), trials=3)
    assert abs(found.objective_error) < 1e-6
    assert found.equal_predictions >= 0.999
    assert found.speedup > 0
    assert found.fast.validation_top1 >= found.trials.validation_top1


def test_without_optuna_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="not installed") as error:
        best_of_trials(tmp_path / "s.sqlite", RANGES, score, trials=1, seed=0)
    assert ".[optuna]" in (error.value.hint or "")
