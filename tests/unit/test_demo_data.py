"""The demo's samples: real digits, as many as said, the same bytes every time."""

from __future__ import annotations

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.stages.demo.config import IMAGES, has_our_images, write_config
from unic_pipe.stages.demo.data import COUNTS, SHAPES, seen_test_images, write_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_samples(folder)
    return folder


def members(folder, name):
    found = {}
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    return found


def test_every_dataset_has_its_rows_with_an_image_and_a_label_each(data):
    for name, count in COUNTS.items():
        found = members(data, name)
        images, labels = ([v for k, v in found.items() if k.endswith(e)] for e in (".png", ".cls"))
        assert len(images) == len(labels) == count, name
        assert {int(label) for label in labels} == set(range(len(SHAPES) if "shapes" in name else 10)), name
        assert len(set(images)) > 0.99 * count, name
        assert Image.open(io.BytesIO(images[0])).size == (32, 32)


def test_digits_are_those_of_scikit_learn_and_no_split_shares_one(data):
    digits = load_digits()
    real = {image.tobytes(): int(label) for image, label in zip(digits.images, digits.target, strict=True)}
    seen = 0
    keys = []
    for split in ("train", "val", "test"):
        found = members(data, f"digits-{split}")
        keys += [key for key in found if key.endswith(".png")]
        for key in keys[seen : seen + 5]:
            small = Image.open(io.BytesIO(found[key])).convert("L").resize((8, 8), Image.Resampling.BOX)
            near = min(digits.images, key=lambda i: np.abs(np.asarray(small) / 255 * 16 - i).sum())
            assert real[near.tobytes()] == int(found[key.replace(".png", ".cls")])
        seen = len(keys)
    assert len(keys) == len(set(keys)) == len(digits.target)


def test_no_test_image_is_learned_from_and_one_that_were_would_be_counted(data, tmp_path):
    pool, tests = (sum(n for name, n in COUNTS.items() if name.endswith(part)) for part in ("train", "test"))
    assert seen_test_images(data) == (pool, tests, 0)
    for shard in [*data.glob("digits-test-*.tar"), data / "shapes-train-000000.tar"]:
        shutil.copy(shard, tmp_path)
        shutil.copy(shard, tmp_path / shard.name.replace("digits-test", "leaked-train"))
    assert seen_test_images(tmp_path)[1:] == (COUNTS["digits-test"], COUNTS["digits-test"])


def test_writing_again_does_nothing_and_a_missing_shard_comes_back_as_it_was(data):
    shards = sorted(data.glob("*.tar"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    write_samples(data)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards} == before
    shards[-1].unlink()
    write_samples(data)
    assert {path: path.read_bytes() for path in shards} == {path: raw for path, (raw, _) in before.items()}


def test_the_demo_of_an_earlier_version_keeps_its_own_images(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
    text = write_config(new).read_text()
    (old / "unic-pipe.yaml").write_text(text.replace(IMAGES, "images"))
    assert write_config(old).read_text() != text, "a configuration that is there stays"
    assert has_our_images(load_workspace(new).config)
    assert not has_our_images(load_workspace(old).config)
