"""`compute.compile`: the same bytes by whoever compiles, and what is compiled says what the encoder says.

Legend: N rows, B rows of a batch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import compiled, load_encoder, resolve_encoder
from unic_pipe.pipeline.extraction.calibrate import sample_features
from unic_pipe.schemas.config import ComputeConfig, EncoderConfig
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import ComputeDefinition

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}
TEACHERS = """\
teachers:
  small:
    encoder: timm:vit_tiny_patch16_224
    model_args: {depth: 1, embed_dim: 32, num_heads: 2}
    weights: random:0
    image_size: 32
compute: {batch: 8, compile: true}
"""
COMPUTE = ComputeDefinition(dtype="float32", batch=8, threads=1, compile=True)


def command(work: Any, cache: Path) -> subprocess.Popen[str]:
    """`unic-pipe extract` with compiled code of its own."""
    program = [str(Path(sys.executable).with_name("unic-pipe")), "extract", "--device", "cpu"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return subprocess.Popen(program, cwd=work.folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_compiled_again_it_writes_the_same_bytes(
    raw: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks with short last batches among them; nothing compiled is left of the killed process."""
    config = raw.folder / "unic-pipe.yaml"
    before, rest = config.read_text().split("teachers:\n")
    config.write_text(before + TEACHERS + "students:\n" + rest.split("students:\n")[1])
    whole = tools.work(shutil.copytree(raw.folder, tmp_path / "whole", symlinks=True))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "its"))
    assert all(made.complete for made in whole.extract().values())

    cache = tmp_path / "killed"
    process = command(raw, cache)
    while process.poll() is None and not any(raw.folder.glob("features/train-small-*/**/00*.json")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was at its end before"
    assert any(cache.iterdir())
    shutil.rmtree(cache)
    process = command(raw, cache)
    assert process.wait(900) == 0, process.communicate()[1][-2000:]
    assert any(cache.iterdir()), "it compiled again"
    assert raw.content("features") == whole.content("features")

    stored = FeatureCache.open(raw.features("train-small"))
    assert stored.definition.compute.compile
    inventory = raw.inventory("compute.compile=false")
    [need] = inventory.training_needs(("small",), "train")
    assert need.folder_name != raw.features("train-small").name
    plain = sample_features(raw.dataset(), range(16), need, inventory.teacher("small"), "cpu", 8)
    for token, values in plain.items():
        np.testing.assert_allclose(stored.read_block(0, token, 0).values, values, atol=2e-3 * values.std())


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    given = EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random:0", image_size=32, model_args={**TINY})
    return load_encoder(resolve_encoder("tiny", given, tmp_path, None))


@pytest.mark.slow
def test_few_images_are_filled_up_to_the_batch(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as always, and then run as traced: every pass has the same size, and images know nothing of each other."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    x_N3HW = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    plain = encoder.encode(x_N3HW, COMPUTE.model_copy(update={"compile": False}))
    torch._dynamo.utils.counters.clear()
    for count in (8, 5, 1):
        found = encoder.encode(x_N3HW[:count], COMPUTE)
        assert torch.equal(found.cls, plain.cls[:count])
        assert torch.equal(found.patch, plain.patch[:count])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    smaller = encoder.encode(x_N3HW[:3], COMPUTE.model_copy(update={"batch": 4}))
    torch.testing.assert_close(smaller.cls, plain.cls[:3])


@pytest.mark.slow
def test_what_cannot_be_compiled_is_said(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> None:
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    with pytest.raises(StageError, match="vit_tiny_patch16_224 cannot be compiled for cpu: no C") as caught:
        encoder.encode(torch.zeros((1, 3, 32, 32), dtype=torch.uint8), COMPUTE)
    assert "compute.compile: false" in str(caught.value.hint)
    assert "\n" not in caught.value.message


def test_it_is_no_part_of_older_definitions() -> None:
    assert not ComputeConfig().compile
    assert "compile" not in COMPUTE.model_copy(update={"compile": False}).model_dump_json(exclude_defaults=True)
