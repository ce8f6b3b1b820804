"""Who is to blame for rows that cannot be used: a broken teacher, or images, which are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch

from unic_pipe.schemas.errors import StageError

if TYPE_CHECKING:
    from conftest import Tools, Work


@pytest.mark.parametrize("codec", ["float16", "klt"])
def test_a_teacher_of_nan_is_blamed_itself(raw: Work, codec: str) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["blocks.0.mlp.fc1.weight"] *= 1e6  # beyond float16
    torch.save(state, raw.folder / "nan.pth")
    config = raw.folder / "unic-pipe.yaml"
    text = config.read_text()
    line = "  nan: {encoder: 'checkpoint:nan.pth', architecture: test_vit, image_size: 32, dtype: float16}\n"
    config.write_text(text.replace("teachers:\n", f"teachers:\n{line}"))
    with pytest.raises(StageError, match="Teacher nan gives NaN for every image: check its weights or its dtype"):
        raw.extract(f"cache.codec={codec}", teachers=["nan"])
    slow = [
        line for line in raw.said if line.startswith("nan: computed in float16, as the configuration says; cpu here")
    ]
    assert len(slow) == (codec == "float16"), "calibration fails before that"


def test_the_first_bad_images_are_named_with_reasons(raw: Work, tools: Tools) -> None:
    members = tools.digit_members(0, 20)
    broken = [(n, d[:60]) if n in {f"digit{i:04d}.png" for i in (3, 5, 7, 9)} else (n, d) for n, d in members]
    for old in (raw.folder / "data").glob("train-*.tar"):
        old.unlink()
    tools.put_tar(raw.folder / "data" / "train-0000.tar", broken)
    with pytest.raises(StageError) as caught:
        raw.extract(teachers=["lite1"])
    read = "lite1: 32 px, grid 1 x 1, readout cnn (cls: pooled map), weights from the whole file, mean 0.5 and std 0.5"
    assert raw.said[0].startswith(read)
    message = caught.value.message
    assert "4 of 20 rows of train cannot be used" in message
    for key in ("digit0003", "digit0005", "digit0007"):
        assert f"{key}: undecodable: " in message
    assert "; and 1 more." in message
    assert "ledger.parquet" in (caught.value.hint or "")
