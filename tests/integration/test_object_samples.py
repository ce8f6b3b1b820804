"""Samples in a bucket, everything else in the working folder: the same features and students as from files."""

import json
import shutil

import pytest
import torch

from unic_pipe.pipeline.cache.reader import FeatureCache


@pytest.fixture
def moved(s3):
    """Puts a working folder's tars into the bucket, and gives the overrides that find them there."""

    def move(work):
        client = s3.client()
        for path in sorted((work.folder / "data").glob("*.tar")):
            client.pipe_file(f"{s3.name}/imagenet/data/{path.name}", path.read_bytes())
        shutil.rmtree(work.folder / "data")
        return f"samples.roots=[{s3.url}/imagenet]", f"storage.options={json.dumps(s3.options)}"

    return move


@pytest.mark.slow
def test_features_from_a_bucket_are_those_from_files(raw, extracted_template, moved, s3):
    there = moved(raw)
    s3.proxy.fail(r"^GET .*\.tar", 503, 3)
    s3.proxy.fail(r"^GET .*\.tar", "lost response", 2)
    raw.extract(*there, workers=1)
    assert raw.content("features") == extracted_template.content("features")


def test_data_that_moved_to_a_bucket_stale_nothing(extracted, moved, s3):
    extracted.index()
    before = extracted.states()
    cache = FeatureCache.open(extracted.features("train-lite0"))
    near = [images for images, _ in cache.loader(extracted.dataset(), batch=16)]
    assert before["samples/train"] == "fresh"
    assert [s for name, s in before.items() if name.startswith("features")] == ["fresh"] * 4
    there = moved(extracted)
    assert extracted.states()["samples/train"] == "stale"
    assert extracted.states(*there) == before
    dataset = extracted.inventory(*there).dataset("train").dataset
    s3.proxy.log.clear()
    far = [images for images, _ in cache.loader(dataset, batch=16)]
    assert len(far) == len(near)
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
    assert s3.proxy.count(r"^GET .*\.tar") > 0


def test_a_student_sees_the_same_images_from_a_bucket(extracted, trained_template, moved):
    extracted.distill(*moved(extracted))
    same = extracted.student() / "export", trained_template.student() / "export"
    assert [(p.name, p.read_bytes()) for p in sorted(same[0].glob("*.safetensors"))] == [
        (p.name, p.read_bytes()) for p in sorted(same[1].glob("*.safetensors"))
    ]
