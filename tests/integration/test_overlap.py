"""Test images that a probe or a student was trained on are counted and said, and are part of no digest."""

from __future__ import annotations

import json
from typing import Any


def test_test_images_that_were_trained_on_are_said(trained: Any, tools: Any) -> None:
    tools.put_tar(
        trained.folder / "data/test-0000.tar", tools.digit_members(83, 40)
    )  # the training set ends with digit 89
    pupil = (  # of tiny, on other images
        "{teachers: [proxy], dataset: val, architecture: vit_tiny_patch16_224, image_size: 32, threads: 1, streams: 1, "
        "model_args: {patch_size: 16, depth: 1, embed_dim: 24, num_heads: 2}, ladder: {hidden: 8, last_hidden: 8}, "
        "optimizer: {epochs: 1, batch: 4, warmup_epochs: 0}}"
    )
    overrides = (
        "evaluate.probes=[knn]", "evaluate.benchmarks.clean={train: train, test: val}", "distill.validation=null",
        "teachers.proxy.encoder=student:tiny", "students.tiny.teachers=[lite0, lite1]", f"students.pupil={pupil}",
        "evaluate.baseline=false",
    )  # fmt: skip
    trained.index(*overrides)
    trained.extract(*overrides)
    trained.distill(*overrides, student="pupil")
    found = {(r.benchmark, r.encoder): r.message for r in trained.evaluate(*overrides)}
    clean = {encoder: message for (benchmark, encoder), message in found.items() if benchmark == "clean"}
    learned = "12 of 12 test images are among the images that the student was distilled from."
    assert clean.pop("pupil").startswith(learned)
    assert not any("test images" in message for message in clean.values())
    in_training = "7 of 40 test images are in the training set."
    assert found["digits", "lite0"] == in_training
    in_distillation = "7 of 40 test images are among the images that the student was distilled from."
    assert found["digits", "tiny"] == f"{in_training} {in_distillation}"
    lineage = "7 of 40 test images are among the images that tiny, which it learned from, was distilled from."
    of_its_own = "12 of 40 test images are among the images that the student was distilled from."  # val is 90 to 101
    assert found["digits", "pupil"] == f"{in_training} {of_its_own} {lineage}"
    records = (trained.folder / "evaluations/main/results").iterdir()
    written = {(r["benchmark"], r["encoder"]): r["message"] for r in (json.loads(p.read_bytes()) for p in records)}
    assert written == found
