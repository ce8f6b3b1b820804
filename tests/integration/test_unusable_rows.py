"""Rows that cannot be used: listed with the reason, counted against one limit, and never trained on."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unic_pipe.schemas.errors import StageError

TRAIN_ONLY = "distill.validation=null"


def noise(seed: int, extension: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, extension)
    return picture.getvalue()


def spoiled_members(tools: Any) -> list[tuple[str, bytes]]:
    """32 samples of which four have no image that could be decoded."""
    members = tools.digit_members(0, 32)
    picture = noise(0)
    for place, data in ((3, picture[: len(picture) // 2]), (7, b"no image at all"), (20, b""), (31, noise(1)[:40])):
        members[2 * place] = (members[2 * place][0], data)
    return members


def test_unusable_images_are_listed_and_never_trained_on(raw: Any, tools: Any) -> None:
    tools.put_tar(raw.folder / "data/train-0000.tar", spoiled_members(tools))
    bad = {"digit0003", "digit0007", "digit0020", "digit0031"}
    with pytest.raises(StageError) as error:
        raw.extract(TRAIN_ONLY)
    assert re.search(
        r"^\d of 90 rows of train cannot be used \(limit 0\.10%, samples\.max_bad_fraction\)", str(error.value)
    )
    assert "features/train-lite0" in str(error.value.hint)
    assert "ledger.parquet" in str(error.value.hint)
    assert read_ledger(raw)["key"]

    passes = raw.extract("samples.max_bad_fraction=0.05")
    assert (passes["train"].complete, passes["train"].bad_rows) == (True, 4)
    ledger = read_ledger(raw)
    assert set(ledger["key"]) == bad
    assert set(zip(ledger["view"], ledger["token"], strict=True)) == {(v, t) for v in (0, 1) for t in ("cls", "patch")}
    assert all(reason.startswith("undecodable: ") for reason in ledger["reason"])
    assert {raw.dataset().key(row) for row in ledger["row"]} == bad
    raw.distill()
    manifest = (raw.student() / "manifest.json").read_text()
    assert '"rows": 86' in manifest


def test_deleted_images_void_their_rows_and_the_rest_goes_on(raw: Any, tools: Any) -> None:
    pictures = {name.rpartition(".")[0]: data for name, data in tools.digit_members(0, 32) if name.endswith(".png")}
    (raw.folder / "pictures").mkdir()
    for key, data in pictures.items():
        (raw.folder / f"pictures/{key}.png").write_bytes(data)
    source = (TRAIN_ONLY, "samples.datasets.train.source=pictures")
    raw.extract(*source, teachers=("lite0",))
    before = raw.content("features")

    first = raw.inventory(*source).dataset("train").dataset.key(0)  # one of the probe pictures
    (raw.folder / f"pictures/{first}.png").unlink()
    (raw.folder / "pictures/digit0020.png").unlink()
    assert raw.states(*source)["samples/train"] == "partial"
    raw.index(*source)
    states = raw.states(*source)
    assert (states["samples/train"], states["features/train/lite0"]) == ("fresh", "fresh")
    assert raw.extract(*source)["train"].complete
    assert before.items() <= raw.content("features").items()
    assert set(read_ledger(raw, "train-lite1")["key"]) == {first, "digit0020"}
    assert {"undecodable: deleted after it was indexed"} == set(read_ledger(raw, "train-lite1")["reason"])
    raw.extract(*source, "views.count=3")
    raw.distill(*source)
    assert '"rows": 30' in (raw.student() / "manifest.json").read_text()


def read_ledger(work: Any, pointer: str = "train-lite0") -> dict[str, list[Any]]:
    return pq.read_table(work.features(pointer) / "ledger.parquet").to_pydict()


def write_overflowing_weights(path: Path, work: Any) -> None:
    """Lite0 with one weight so large that the sharpest peak among the training images overflows, and others do not."""
    import torch

    from unic_pipe.pipeline.encoders import load_encoder
    from unic_pipe.pipeline.samples.images import decode_image
    from unic_pipe.pipeline.views.render import render_view
    from unic_pipe.schemas.recipes import GENTLE

    model = load_encoder(work.inventory().teacher("lite0")).model
    dataset = work.dataset()
    images = [(dataset.key(row), decode_image(dataset.read(row))) for row in dataset.rows().tolist()]
    x_N3HW = torch.stack([render_view(image, GENTLE, 0, key, 0, 64) for key, image in images])
    seen: list[torch.Tensor] = []
    handle = model.conv_head.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.inference_mode():
        model.forward_features((x_N3HW.float() / 255 - 0.5) / 0.5)
    handle.remove()
    # For each channel the second and fourth largest of the values that the images reach.
    second_C, fourth_C = seen[0].flatten(2).abs().amax(2).topk(4, dim=0).values[[1, 3]]
    channel = int((second_C / fourth_C).where(fourth_C > 1.1, 0).argmax())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["conv_head.weight"][0] = 0
    state["conv_head.weight"][0, channel] = torch.finfo(torch.float32).max / ((second_C + fourth_C) / 2)[channel]
    # Batch norm multiplies the infinity by 0.
    state["bn2.weight"][0] = 0
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)


def test_features_that_are_not_finite_are_listed_and_never_trained_on(raw: Any) -> None:
    raw.index()
    write_overflowing_weights(raw.folder / "weights/wild.pth", raw)
    half = "[0.5, 0.5, 0.5]"
    teacher = "encoder: 'checkpoint:weights/wild.pth', architecture: tf_efficientnet_lite0, image_size: 64"
    wild = (TRAIN_ONLY, f"teachers.lite0={{{teacher}, mean: {half}, std: {half}}}")
    with pytest.raises(StageError, match=r"of 90 rows of train cannot be used .*\n.*ledger\.parquet"):
        raw.extract(*wild)
    extraction = raw.extract(*wild, "samples.max_bad_fraction=0.2")["train"]
    assert extraction.complete
    ledger = read_ledger(raw)
    assert 0 in ledger["view"]
    assert set(ledger["reason"]) == {"non-finite cls feature", "non-finite patch feature"}
    assert 1 <= len(set(ledger["key"])) == extraction.bad_rows <= 18
    assert read_ledger(raw, "train-lite1")["key"] == []
    raw.distill(*wild)
    assert f'"rows": {90 - extraction.bad_rows}' in (raw.student() / "manifest.json").read_text()
