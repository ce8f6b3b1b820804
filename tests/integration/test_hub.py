"""Encoders out of a hub's repositories: `teachers --fetch` downloads them, every other command reads what is here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from commands import Type
from hub_server import Hub
from safetensors.torch import save

from unic_pipe.pipeline.encoders import resolve_encoder
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.stages.init.stage import missing_weights

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
CONFIG = """
samples: {datasets: {train: {source: data}}}
teachers:
  ours: {encoder: "hf-hub:lab/small.vit"}
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **ARGS)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": ARGS,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3, "license": "cc-by-4.0"},
    }
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(model.state_dict())}
    hub = Hub({f"/lab/small.vit/resolve/main/{name}": body for name, body in files.items()})
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.template)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.close()


def test_only_fetch_downloads_a_repository(typed: Type, hub: Hub, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "unic-pipe.yaml").write_text(CONFIG)
    said = typed(work, "teachers")
    assert "hf-hub:lab/small.vit is not on this machine" in " ".join(said.out.split())
    assert "To get ours: unic-pipe teachers --fetch" in " ".join(said.out.split())
    assert missing_weights(work, ["hf-hub:lab/small.vit", "lite0"]) == ["hf-hub:lab/small.vit"]
    assert hub.asked == []

    assert typed(work, "teachers", "--fetch").code == 0
    folder = work / "weights" / "lab--small.vit"
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert [p.name for p in (work / "weights").iterdir()] == [folder.name]
    asked = len(hub.asked)
    row = json.loads(typed(work, "teachers", "--json").out)["teachers"][0]
    assert (row["licence"], row["readout"], row["mean"], row["image_size"]) == ("cc-by-4.0", "vit", [0.4] * 3, 32)
    assert (row["path"], row["problem"]) == (str(folder / "model.safetensors"), None)
    assert "Nothing to download: the weights" in typed(work, "teachers", "--fetch").err
    assert len(hub.asked) == asked


def test_a_repository_that_does_not_exist_leaves_nothing(typed: Type, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG.replace("small.vit", "none"))
    said = typed(tmp_path, "teachers", "--fetch")
    said.refuses("hf-hub:lab/none: the download failed", "put config.json and model.safetensors into", code=1, lines=9)
    assert set(hub.asked) == {"/lab/none/resolve/main/config.json"}
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_repository_in_the_hubs_own_cache_is_the_same_encoder(typed: Type, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG)
    assert typed(tmp_path, "teachers", "--fetch").code == 0
    encoder = EncoderConfig(encoder="hf-hub:lab/small.vit")
    fetched = resolve_encoder("ours", encoder, tmp_path / "weights", None)
    cached = tmp_path / "hub" / "models--lab--small.vit"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    (tmp_path / "weights" / "lab--small.vit").rename(cached / "snapshots" / "abc")
    found = resolve_encoder("ours", encoder, tmp_path / "weights", None)
    assert found.weights_path == cached / "snapshots" / "abc" / "model.safetensors"
    assert (found.digest, found.licence) == (fetched.digest, "cc-by-4.0")
