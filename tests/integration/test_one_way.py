"""What is measured is what runs: all who need features get them from one function, with the stage's own settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import encoder
from unic_pipe.pipeline.extraction import forward
from unic_pipe.pipeline.extraction.live_check import live_check
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.views.photometric import finish
from unic_pipe.pipeline.views.rows import Rendering, views_of_rows
from unic_pipe.schemas.features import ComputeDefinition

SETTINGS = (
    "views.recipe=unic", "views.count=1", "cache.codec=klt", "distill.validation=null", "students={}",
    "evaluate.benchmarks={}",
)  # fmt: skip


class Recorder:
    """Which module asked `features_of_rows`, where the photometric part of its views was done, how encoders were run and
    in which batches, and how many views a device finished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, set[str]] = {}
        self.computed: set[tuple[ComputeDefinition, int]] = set()
        self.finished = 0

        def rendered(dataset: Any, rows: Sequence[int], renderings: dict[Rendering, None], *more: Any) -> Any:
            one, asker = sys._getframe(1), sys._getframe(2)
            assert one.f_code.co_name == "features_of_rows"
            self.computed.update((run.compute, one.f_locals["batch"]) for run in one.f_locals["runs"])
            where = {rendering.where for rendering in renderings if rendering.recipe.photometric}
            if where:
                self.asked.setdefault(asker.f_globals["__name__"], set()).update(where)
            return views_of_rows(dataset, rows, renderings, *more)

        def counted(x_B3HW: torch.Tensor, *more: Any) -> torch.Tensor:
            self.finished += len(x_B3HW)
            return finish(x_B3HW, *more)

        monkeypatch.setattr(forward, "views_of_rows", rendered)
        monkeypatch.setattr(encoder, "finish", counted)

    def taken(self) -> tuple[dict[str, set[str]], bool]:
        """What was asked since the last call, and whether a device finished views."""
        found = self.asked, self.finished > 0
        self.asked, self.finished = {}, 0
        return found


@pytest.mark.slow
@pytest.mark.parametrize("views", ["host", "device"])
def test_all_who_need_features_ask_one_function(raw: Any, monkeypatch: pytest.MonkeyPatch, views: str) -> None:
    from unic_pipe.cli.bench import _parts
    from unic_pipe.stages.bench.run import BenchOptions, bench
    from unic_pipe.stages.distill.measure.cost import step_cost
    from unic_pipe.stages.plan.stage import PlanOptions, plan

    settings, on_device = (*SETTINGS, f"compute.views={views}"), views == "device"
    raw.index()
    seen = Recorder(monkeypatch)
    compute = raw.inventory(*settings).training_needs(("lite0",), "train")[0].definition.compute
    plan(raw.inventory(*settings), PlanOptions(device="cpu"), step_cost, SilentReporter())
    assert seen.taken() == ({"unic_pipe.stages.plan.timing": {views}}, on_device)
    # Images that do not fill a batch on every core are shared out.
    planned, seen.computed = seen.computed, set()
    assert {batch for _, batch in planned} <= {*range(1, 9)}
    without = (*settings, "students={}")
    assert bench(
        raw.inventory(*without), BenchOptions("cpu", repeats=1, quick=True), _parts(), SilentReporter(), Stop()
    )
    # The bench extracts as extraction does, and takes the pieces of the same function alone.
    everywhere = {"unic_pipe.pipeline.extraction.calibrate": {views}, "unic_pipe.pipeline.extraction.blocks": {views}}
    assert seen.taken() == (everywhere | {"unic_pipe.stages.bench.extraction": {views}}, on_device)
    assert raw.extract(*settings)["train"].complete
    assert seen.taken() == (everywhere, on_device)
    cache, inventory = FeatureCache.open(raw.features("train-lite0")), raw.inventory(*settings)
    found = live_check(cache, raw.dataset(), inventory.teacher("lite0"), "cpu", 4, {"cls": 1, "patch": 1}, 6)
    assert [finding.ok for finding in found] == [True, True]
    assert seen.taken() == ({"unic_pipe.pipeline.extraction.live_check": {views}}, on_device)
    # Centre crops have no colours that could be changed elsewhere.
    assert {given.model_copy(update={"views": views}) for given, _ in planned | seen.computed} == {compute}
    assert {batch for _, batch in seen.computed} == {8}
