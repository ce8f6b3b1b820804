"""Test images that a probe or a student was trained on are counted and said, and are part of no digest."""

from __future__ import annotations

import json
from typing import Any


def test_test_images_that_were_trained_on_are_said(trained: Any, tools: Any) -> None:
    tools.put_tar(
        trained.folder / "data/test-0000.tar", tools.digit_members(83, 40)
    )  # the training set ends with digit 89
    overrides = ("evaluate.probes=[knn]", "evaluate.benchmarks.clean={train: train, test: val}")
    trained.index(*overrides)
    found = {(r.benchmark, r.encoder): r.message for r in trained.evaluate(*overrides)}
    assert not any("test images" in message for (benchmark, _), message in found.items() if benchmark == "clean")
    in_training = "7 of 40 test images are in the training set."
    assert found["digits", "lite0"] == in_training
    in_distillation = "7 of 40 test images are among the images that the student was distilled from."
    assert found["digits", "tiny"] == f"{in_training} {in_distillation}"
    records = (trained.folder / "evaluations/main/results").iterdir()
    written = {(r["benchmark"], r["encoder"]): r["message"] for r in (json.loads(p.read_bytes()) for p in records)}
    assert written == found
