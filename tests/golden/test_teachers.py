"""The four teachers' official classes against ours, from checkpoints in their official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.schemas.config import EncoderConfig

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("teacher", "key"), [("dino", "dino"), ("ibot", "ibot"), ("deit3", "deit3"), ("dbot-ft", "dbotft")]
)
def test_tokens_of_official_checkpoint(golden: Path, tmp_path: Path, teacher: str, key: str) -> None:
    config = EncoderConfig(weights=str(golden / f"teacher_{key}_tiny.pth"), image_size=32, model_args=TINY)
    encoder = load_encoder(resolve_encoder(teacher, config, tmp_path, None))
    with np.load(golden / "teachers.npz") as expected:
        cls_BD, patch_BPD = encoder(torch.from_numpy(expected["teacher/image"]))
        np.testing.assert_allclose(cls_BD.numpy(), expected[f"teacher/{key}/cls"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(patch_BPD.numpy(), expected[f"teacher/{key}/patch"], rtol=1e-5, atol=1e-6)
