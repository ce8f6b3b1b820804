"""Features in an object store: the same bytes as on a disk, through failures, two writers, damage and removal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from object_server import Bucket
from typer.testing import CliRunner

from unic_pipe.cli.main import app
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.gc.stage import collect, find
from unic_pipe.stages.verify import verify


def run(work: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--config", str(work.folder)])


@pytest.mark.slow
def test_the_whole_way(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    """Extract, distill, evaluate, plan, report, verify, status, gc: with nothing but documents in the working folder."""
    path = remote.folder / "unic-pipe.yaml"
    text = path.read_text().replace("  lite0: {encoder: efficientnet-lite0, image_size: 64}\n", "")
    path.write_text(text.replace("  c_values:", "  baseline: false\n  c_values:"))
    ended = run(remote, "run", "--device", "cpu")
    assert ended.exit_code == 0, ended.output
    assert not {"samples", "features"} & {f.name for f in remote.folder.iterdir()}
    mine, theirs = s3.content(), extracted_template.content("samples", "features")
    assert [k for k in theirs if "lite0" not in k and mine.get(k) != theirs[k]] == []
    before = len(s3.proxy.log)
    ended = run(remote, "status", "--json")
    body = json.loads(ended.stdout)
    assert {a["state"] for a in body["artefacts"]} == {"fresh"}
    paths = {a["path"] for a in body["artefacts"] if a["name"].startswith(("features", "samples"))}
    assert all(path.startswith(f"{s3.url}/unic/") for path in paths)
    assert len(s3.proxy.log) - before < 15 * len(paths), "a few requests an artefact, none for a unit"
    assert json.loads(run(remote, "verify", "--json").stdout)["ok"]
    assert json.loads(run(remote, "verify", "--quick", "--json").stdout)["ok"]
    plan = run(remote, "plan", "--device", "cpu", "--json")
    assert json.loads(plan.stdout)["fits"], plan.output
    ended = run(remote, "report", "cache", "--no-plot", "--device", "cpu")
    assert ended.exit_code == 0, ended.output
    assert json.loads(run(remote, "gc", "--json").stdout)["items"] == []


def test_reading_by_address(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    remote.extract(teachers=["lite0"])
    address = f"{s3.url}/unic/features/train-lite0"
    cache, here = FeatureCache.open(address, s3.options), FeatureCache.open(extracted_template.features("train-lite0"))
    assert cache.location.startswith(address + "-")
    for block in (0, 5):
        one, two = cache.read_block(0, "patch", block), here.read_block(0, "patch", block)
        assert (one.values.tobytes(), one.valid.tobytes()) == (two.values.tobytes(), two.valid.tobytes())
    images, targets = next(iter(cache.loader(remote.dataset(), batch=8)))
    assert (len(images), targets["cls"].shape[0]) == (8, 8)
    with pytest.raises(UserError, match=r"No feature folder s3://.*/train-lite9") as caught:
        FeatureCache.open(f"{s3.url}/unic/features/train-lite9", s3.options)
    assert Path(cache.location).name in (caught.value.hint or "")
    # A colleague reads them from the bucket instead of making them.
    other = type(remote)(remote.folder)
    override = ["storage.url=null", f"feature_roots=['{s3.url}/unic/features']"]
    other.index(*override)
    assert other.artefact("features/train/lite0", *override).reason == f"read from {cache.location}"


@pytest.mark.slow
def test_refused_in_the_middle(remote: Any, s3: Bucket) -> None:
    """Credentials that end while it runs: a message, and what was finished counts."""
    remote.index()
    fault = s3.proxy.fail(r"PUT .*/000003\.json", 403, times=10**6)
    ended = run(remote, "extract", "--teacher", "lite1", "--device", "cpu")
    assert isinstance(ended.exception, UserError)
    assert "was refused (403 AccessDenied)" in str(ended.exception)
    fault.times = 0
    before = remote.artefact("features/train/lite1")
    assert before.done > 0
    remote.extract(teachers=["lite1"])
    assert remote.artefact("features/train/lite1").state == "fresh"


@pytest.mark.slow
def test_verify_finds_a_flipped_bit_and_extract_mends_it(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    remote.extract(teachers=["lite1"])
    store, client = s3.store(), s3.client()
    whole = s3.content()
    key = next(k for k in whole if "train-lite1" in k and "/patch/c/" in k)
    flipped = bytearray(whole[key])
    flipped[len(flipped) // 2] ^= 4
    client.pipe_file(f"{s3.name}/unic/{key}", bytes(flipped))
    folder, _, inside = key.removeprefix("features/").partition("/")
    cache = FeatureCache(store.child("features").child(folder))
    block = int(inside.split("/")[3])
    with pytest.raises(StageError, match=f"Damaged: s3://.*{inside}"):
        cache.read_block(0 if "view-000" in inside else 1, "patch", block)
    report, following = verify(remote.inventory(), False, SilentReporter())
    assert [(p.path, p.kind) for p in report.problems] == [(key, "content")]
    assert following is not None
    assert following.startswith("unic-pipe extract")
    assert remote.artefact("features/train/lite1").state == "partial"
    outcome = remote.extract(teachers=["lite1"])
    assert outcome["train"].done == 1
    after = s3.content()
    assert {k for k in after if "/damaged/" not in k} == set(whole)
    assert [k for k in whole if after[k] != whole[k]] == []


@pytest.mark.slow
def test_gc_removes_from_the_bucket_what_nothing_names(remote: Any, s3: Bucket) -> None:
    remote.extract(teachers=["lite1"])
    old = {k: raw for k, raw in s3.content().items() if not k.startswith("features/val")}
    remote.extract("views.seed=5", teachers=["lite1"])
    assert find(remote.inventory()).items == (), "both are named: by the pointer, and by the configuration"
    inventory = remote.inventory("views.seed=5")
    found = find(inventory)
    gone = {item.path for item in found.items}
    assert gone == {
        f"{s3.url}/unic/{k.rpartition('/')[0]}"
        for k in old
        if k.endswith("manifest.json") and "train-" in k and "features" in k
    }
    assert s3.content().keys() >= old.keys(), "shown only"
    report = collect(inventory, found, SilentReporter())
    assert report.removed
    left = s3.content()
    assert not any(f"{s3.url}/unic/{key}".startswith(path + "/") for key in left for path in gone)
    assert remote.artefact("features/train/lite1", "views.seed=5").state == "fresh"
    # Cut off after the manifest went: the next one finishes it.
    folder = next(iter(report.items)).path.rpartition("/")[2]
    store = s3.store().child("features").child(folder)
    store.put(".removing", b"")
    store.put("view-000/cls/c/0/0", b"left")
    again = find(inventory)
    assert [item.why for item in again.items] == ["its removal was cut off"]
    collect(inventory, again, SilentReporter())
    assert folder not in s3.store().folders("features")


@pytest.mark.slow
def test_a_store_that_ignores_conditions_takes_one_writer(remote: Any, s3: Bucket) -> None:
    s3.proxy.ignore_conditions = True
    remote.index()
    with pytest.raises(UserError, match="ignores conditional writes"):
        remote.extract(teachers=["lite1"], workers=2)
    remote.extract(teachers=["lite1"])
    assert [text for text in remote.said if "ignores conditional writes" in text] != []
    assert remote.artefact("features/train/lite1").state == "fresh"
