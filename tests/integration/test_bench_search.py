"""Two ways to choose C, on features that evaluate has extracted."""

from __future__ import annotations

from typing import Any

import pytest
from search_bench import bench_search

from schemas.errors import UserError


@pytest.mark.slow
def test_both_searches_on_a_teachers_features(trained: Any) -> None:
    with pytest.raises(UserError) as missing:
        bench_search(trained.inventory(), "cpu")
    assert "unic-pipe evaluate" in str(missing.value.hint)
    trained.index()
    trained.evaluate()
    plan, found = bench_search(trained.inventory("evaluate.trials=3"), "cpu")
    assert plan.encoder.name in ("lite0", "lite1")
    assert found.speedup == pytest.approx(found.trials_seconds[0] / found.fast_seconds[0])
    # The same objective at the same C, and its minimum: scikit-learn's solver may stop above it, never below.
    assert -1e-2 < found.objective_error < 1e-6
    assert found.equal_predictions > 0.9
