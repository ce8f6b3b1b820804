"""Two ways to choose C, on features that evaluate has extracted."""

from __future__ import annotations

from typing import Any

import probe_search
import pytest


@pytest.mark.slow
def test_both_searches_on_a_teachers_features(trained: Any) -> None:
    trained.index()
    trained.evaluate()
    title, found = probe_search.compared(trained.inventory("evaluate.trials=3"))
    assert title.startswith("lite0 on digits")
    # The same objective at the same C, and its minimum: scikit-learn's solver may stop above it, never below.
    assert -1e-2 < found.objective_error < 1e-6
    assert found.equal_predictions > 0.9
