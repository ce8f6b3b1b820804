"""Packing folders into tars, and looking at sources before indexing."""

import io
import os

import pytest
import webdataset
from PIL import Image

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples import index_dataset
from unic_pipe.pipeline.samples.pack import pack
from unic_pipe.pipeline.samples.survey import survey, survey_splits
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError


def index(work, source, name="t", **fields):
    config = DatasetConfig(source=source, **fields)
    return index_dataset(work, name, config, SamplesConfig(datasets={name: config}, block_rows=4))


@pytest.fixture
def folders(tmp_path, picture):
    for c in ("cat", "dog"):
        (tmp_path / "train" / c).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "train" / c / f"{c}{i}.JPEG").write_bytes(picture(i + 50 * (c == "dog"), "JPEG", 24))
    return tmp_path


def tree(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_packed_tars_hold_the_same_bytes_and_labels(folders):
    dataset = index(folders, "train")
    packed = pack(dataset, folders / "tars", shard_bytes=20_000)
    tars = sorted((folders / "tars").glob("t-*.tar"))
    assert packed.shards == packed.written == len(tars) > 1
    assert sum(path.stat().st_size for path in tars) == packed.bytes
    samples = list(webdataset.WebDataset([str(p) for p in tars], shardshuffle=False))
    assert [s["__key__"] for s in samples] == [dataset.key(int(r)) for r in dataset.rows()]
    for row, sample in enumerate(samples):
        assert sample["jpeg"] == dataset.read(row)
        assert int(sample["cls"]) == dataset.labels()[row]
        Image.open(io.BytesIO(sample["jpeg"])).load()


def test_packing_keeps_the_datasets_identity(folders):
    dataset = index(folders, "train")
    pack(dataset, folders / "tars", shard_bytes=20_000)
    packed = index(folders, "tars/t-*.tar")
    assert packed.manifest.layout == "tars"
    assert packed.digest == dataset.digest
    assert packed.store == dataset.store
    assert [packed.block_digest(b) for b in range(packed.blocks)] == [dataset.block_digest(b) for b in range(6)]
    assert packed.labels().tolist() == dataset.labels().tolist()
    assert packed.read(3) == dataset.read(3)
    assert index(folders, "train").read(3) == dataset.read(3)


def test_two_packs_are_equal_and_an_interrupted_one_goes_on(folders):
    dataset = index(folders, "train")
    pack(dataset, folders / "a", shard_bytes=20_000)
    stop = Stop()

    class OneShard:
        requested = property(lambda self: bool(list((folders / "b").glob("t-*.tar"))))

    first = pack(dataset, folders / "b", shard_bytes=20_000, stop=OneShard())
    assert first.written == 1
    (folders / "b/.t-000001.tar.part").write_bytes(b"left by a killed process")
    second = pack(dataset, folders / "b", shard_bytes=20_000, stop=stop)
    assert second.written == second.shards - 1
    assert tree(folders / "a") == tree(folders / "b")
    assert pack(dataset, folders / "b", shard_bytes=20_000).written == 0


def test_pack_refuses_what_it_should(folders, picture):
    dataset = index(folders, "train")
    pack(dataset, folders / "tars", shard_bytes=20_000)
    with pytest.raises(UserError, match="other data or with another shard size"):
        pack(dataset, folders / "tars", shard_bytes=30_000)
    (folders / "mine").mkdir()
    (folders / "mine/t-000000.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="already holds"):
        pack(dataset, folders / "mine")
    with pytest.raises(UserError, match="tars already"):
        pack(index(folders, "tars", "u"), folders / "again")
    (folders / "train/cat/a.b.JPEG").write_bytes(picture(1, "JPEG"))
    (folders / "train/cat/a_b.JPEG").write_bytes(picture(2, "JPEG"))
    with pytest.raises(UserError, match="would become 'cat/a_b'"):
        pack(index(folders, "train", "v"), folders / "v")


def test_unlabelled_flat_folder_and_zero_byte_images(tmp_path, picture):
    (tmp_path / "flat").mkdir()
    for i in range(5):
        (tmp_path / f"flat/{i}.png").write_bytes(picture(i) if i else b"")
    dataset = index(tmp_path, "flat")
    pack(dataset, tmp_path / "tars")
    packed = index(tmp_path, "tars", "p")
    assert [packed.read(r) for r in range(5)] == [dataset.read(r) for r in range(5)]
    assert packed.digest == dataset.digest
    assert not packed.manifest.labelled


def test_survey_of_each_layout(folders, shards, picture):
    found = survey(folders / "train")
    assert (found.layout, found.rows, found.classes, found.exact) == ("class-folders", 24, 2, True)
    assert found.root / found.config.source == folders / "train"
    assert found.seconds > 0
    shards("t", range(3))
    tars = survey(folders / "data")
    assert (tars.layout, tars.files, tars.rows, tars.classes, tars.exact) == ("tars", 3, 18, 3, True)
    assert tars.bytes == sum(p.stat().st_size for p in (folders / "data").iterdir())
    pattern = survey(folders / "data" / "t-{0000..0001}.tar")
    assert (pattern.files, pattern.rows, pattern.config.source) == (2, 12, "t-{0000..0001}.tar")
    with pytest.raises(UserError, match="nothing found"):
        survey(folders / "nowhere")


def test_survey_finds_imagenets_pieces(tmp_path, picture):
    val = tmp_path / "imagenet/val"
    val.mkdir(parents=True)
    for i in range(3):
        (val / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(picture(i, "JPEG"))
    (tmp_path / "imagenet/train/n01").mkdir(parents=True)
    (tmp_path / "imagenet/train/n01/a.JPEG").write_bytes(picture(9, "JPEG"))
    kit = tmp_path / "imagenet/ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
    splits = survey_splits(tmp_path / "imagenet")
    assert set(splits) == {"train", "val"}
    assert splits["val"].config.labels == "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    config = splits["val"].config
    samples = SamplesConfig(datasets={"val": config}, roots=(str(splits["val"].root),))
    assert index_dataset(tmp_path, "val", config, samples).labels().tolist() == [1, 2, 3]


def test_survey_tells_splits_apart_in_one_folder_of_tars(shards, tmp_path):
    shards("imagenet1k-train", range(3))
    shards("imagenet1k-validation", range(2))
    splits = survey_splits(tmp_path / "data")
    assert {name: (s.files, s.config.source) for name, s in splits.items()} == {
        "train": (3, "imagenet1k-train*.tar"),
        "validation": (2, "imagenet1k-validation*.tar"),
    }
    assert all(os.path.isdir(s.root) for s in splits.values())
    shards("other", [0])
    assert set(survey_splits(tmp_path / "data")) == {"train"}
