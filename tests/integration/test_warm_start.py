"""Students that start from weights: real ImageNet ones, a teacher's, a student's; and how they go on after a stop."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from students import train

LITE = {
    "architecture": "tf_efficientnet_lite0", "image_size": 32, "init": "pretrained", "threads": 1, "streams": 4,
    "window_blocks": 2, "ladder": {"blocks": "last", "last_hidden": 16},
    "optimizer": {"epochs": 1, "warmup_epochs": 0, "batch": 8, "lr": 1e-12, "min_lr": 0.0},
}  # fmt: skip


def write(work: Any, **students: Any) -> None:
    yaml, file = YAML(), work.folder / "unic-pipe.yaml"
    yaml.dump({**yaml.load(file), "students": students}, file)


def test_lite0(extracted: Any) -> None:
    write(extracted, lite=LITE)
    said = train(extracted, "lite")
    print(said)
    definition = extracted.inventory().finished_students["lite"].manifest.definition
    print(definition)
