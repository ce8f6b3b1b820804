"""`bench --search`: two ways to choose C, on features that evaluate has extracted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from schemas.errors import UserError


@pytest.mark.slow
def test_both_searches_on_a_teachers_features(trained: Any) -> None:
    missing = CliRunner().invoke(app, ["bench", "--search", "--config", str(trained.folder)])
    assert isinstance(missing.exception, UserError)
    assert "unic-pipe evaluate" in missing.exception.hint
    trained.index()
    trained.evaluate()
    options = ["--json", "--device", "cpu", "--set", "evaluate.trials=3", "--config", str(trained.folder)]
    ended = CliRunner().invoke(app, ["bench", "--search", *options])
    assert ended.exit_code == 0, ended.output
    body = json.loads(ended.stdout)
    assert body["encoder"] in ("lite0", "lite1")
    assert body["speedup"] == pytest.approx(body["trials_seconds"][0] / body["fast_seconds"][0])
    # The same objective at the same C, and its minimum: scikit-learn's solver may stop above it, never below.
    assert -1e-2 < body["objective_error"] < 1e-6
    assert body["equal_predictions"] > 0.9
