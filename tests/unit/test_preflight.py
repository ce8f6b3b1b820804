"""Estimates before long work: room on the disk, and the time that a CPU would need."""

from __future__ import annotations

import pytest
from builders import encoder_definition, feature_definition

from unic_pipe.pipeline.cache.needs import FeatureNeed, merge_needs, raw_bytes
from unic_pipe.pipeline.encoders import resolve_encoder
from unic_pipe.pipeline.extraction import preflight
from unic_pipe.pipeline.extraction.preflight import check_disk, check_time
from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.recipes import CENTER, UNIC


def need(codec="float16", encoder=None, views=None, recipe=UNIC, name="dino"):
    definition = feature_definition(encoder or encoder_definition(768, 768, (14, 14)), 256, codec, recipe=recipe)
    return FeatureNeed("train", name, definition, {"cls": 1, "patch": 1} if views is None else views)


def test_bytes_as_disks_are_sold():
    values = [0, 999, 1000, 999_600, 1.55e12, 13_700, 3e15, 123_456_789]
    assert [human_bytes(v) for v in values] == [
        "0 B", "999 B", "1 kB", "1 MB", "1.55 TB", "13.7 kB", "3.0 PB", "123 MB",
    ]  # fmt: skip


def test_the_size_of_the_paper_s_cache():
    """Four ViT-B teachers, 197 tokens, float16: 1.21 MB for each view of each image."""
    assert 4 * raw_bytes(need(), 1) == pytest.approx(1.21e6, rel=0.01)
    assert raw_bytes(need("int8"), 10) == 5 * raw_bytes(need(), 1)
    assert raw_bytes(need(views={"cls": 3}), 1) == 3 * 768 * 2


def test_a_disk_that_is_too_small_says_what_is_needed_and_free_and_what_to_do(tmp_path):
    with pytest.raises(StageError) as caught:
        check_disk(tmp_path, [(need(), LocalStore(tmp_path / "a")), (need(), LocalStore(tmp_path / "b"))], 10**13)
    assert caught.value.message.startswith("Disk too small: the features need about 5,749.2 PB, ")
    assert str(tmp_path) in caught.value.message
    assert caught.value.message.endswith(" free.")
    assert caught.value.hint.startswith("Make it fit with cache.codec: auto")
    assert "--rows 1%" in caught.value.hint
    with pytest.raises(StageError) as caught:
        check_disk(tmp_path, [(need("int8"), LocalStore(tmp_path / "a"))], 10**13)
    assert "int8" not in caught.value.hint
    check_disk(tmp_path, [(need(), LocalStore(tmp_path / "a"))], 10)


def test_what_is_there_already_needs_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: preflight.shutil._ntuple_diskusage(10**9, 0, 100_000))
    store = LocalStore(tmp_path / "a")
    with pytest.raises(StageError, match=r"need about 287 kB, .* has 100 kB free"):
        check_disk(tmp_path, [(need(), store)], 1)
    store.put("view-000/patch/c/0", b"-" * 250_000)
    check_disk(tmp_path, [(need(), store)], 1)


def test_a_cpu_that_would_take_days_says_how_many(tmp_path, monkeypatch):
    config = EncoderConfig(
        encoder="timm:vit_tiny_patch16_224", weights="random:0", image_size=32, model_args={"depth": 1}
    )
    encoder = resolve_encoder("tiny", config, tmp_path, tmp_path)
    jobs = [(need(encoder=encoder.definition), encoder)]
    tasks = [((((0, "cls"), (0, "patch"), (1, "cls")),), 10**9)]
    with pytest.raises(UserError) as caught:
        check_time(jobs, tasks)
    assert "No GPU was found. CPU: about " in caught.value.message
    assert " days for 2,000,000,000 forward passes on " in caught.value.message
    assert caught.value.hint.endswith("insist with --device cpu.")
    check_time(jobs, [((((0, "cls"),),), 60_000)])
    monkeypatch.setattr(preflight, "_seconds_per_image", None)
    check_time(jobs, [((((0, "cls"),),), 10_000)])
    monkeypatch.setattr(preflight, "_seconds_per_image", lambda *_: 41 * 86_400 * preflight.usable_cores() / 2e9)
    with pytest.raises(UserError, match="CPU: about 41 days for"):
        check_time(jobs, tasks)


def test_needs_of_one_folder_are_merged_and_others_are_not():
    cls, both = need(views={"cls": 1}), need(views={"cls": 2, "patch": 1})
    other, center = need(name="ibot"), need(recipe=CENTER)
    merged = merge_needs([cls, other, both, center])
    assert [(n.name, dict(n.views)) for n in merged] == [
        ("features/train/dino", {"cls": 2, "patch": 1}),
        ("features/train/ibot", {"cls": 1, "patch": 1}),
        ("features/train/dino-center", {"cls": 1, "patch": 1}),
    ]
    assert merged[0].planes() == [(0, "cls"), (0, "patch"), (1, "cls")]
    assert need(views={}).planes() == []
