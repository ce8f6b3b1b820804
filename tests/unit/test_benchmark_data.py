"""Data of named benchmarks that are missing, incomplete, damaged, changed or moved."""

import pytest

from unic_pipe.pipeline.samples import dataset_state
from unic_pipe.pipeline.samples.dataset import find_dataset
from unic_pipe.pipeline.samples.sources import data_roots
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError


@pytest.fixture
def dtd(put, text, counts):
    text("dtd/labels/train1.txt", "a/a_1.jpg\na/a_2.jpg\n")
    text("dtd/labels/val1.txt", "b/b_1.jpg\n")
    text("dtd/labels/test1.txt", "b/b_2.jpg\n")
    put("dtd/images/a/a_1.jpg", "dtd/images/a/a_2.jpg", "dtd/images/b/b_1.jpg", "dtd/images/b/b_2.jpg")
    counts("dtd", 3, 1)


def test_nothing_there_says_which_files_belong_where(tmp_path, read):
    with pytest.raises(UserError) as error:
        read("dtd/train", "data")
    assert str(tmp_path / "data") in error.value.message
    assert "labels/train1.txt, labels/val1.txt, images" in error.value.message
    assert "dtd-r1.0.1.tar.gz" in error.value.hint
    assert "evaluate.benchmarks.dtd.root" in error.value.hint
    config = DatasetConfig(source="data", reader="dtd/train")
    state, reason = dataset_state(None, data_roots(tmp_path, config, SamplesConfig(datasets={})), config)
    assert state == "missing"
    assert "labels/train1.txt" in reason


def test_a_part_of_it_names_only_what_is_missing(tmp_path, dtd, read):
    (tmp_path / "dtd/labels/val1.txt").unlink()
    with pytest.raises(UserError, match=r"not in \S+/dtd: labels/val1\.txt\.\n"):
        read("dtd/train")


@pytest.mark.parametrize(("train", "test", "why"), [(3760, 1, "half downloaded"), (1, 3, "the other split")])
def test_another_number_of_images_is_refused(dtd, read, counts, train, test, why):
    counts("dtd", train, test)
    with pytest.raises(UserError, match=f"has {train:,} images, .* has 3: .*{why}"):
        read("dtd/train")


def test_images_that_are_listed_but_not_there(tmp_path, dtd, read):
    (tmp_path / "dtd/images/a/a_2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 3 images .* \(first: images/a/a_2\.jpg\)"):
        read("dtd/train")


def test_damaged_lists(tmp_path, dtd, read):
    (tmp_path / "dtd/labels/train1.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"train1\.txt: cannot be read"):
        read("dtd/train")


def test_changed_lists_are_another_dataset_beside_the_old(tmp_path, dtd, read, text, put, counts):
    read("dtd/train")
    put("dtd/images/b/b_3.jpg")
    text("dtd/labels/val1.txt", "b/b_1.jpg\nb/b_3.jpg\n")
    counts("dtd", 4, 1)
    config = DatasetConfig(source=".", reader="dtd/train")
    roots = data_roots(tmp_path, config, SamplesConfig(datasets={}))
    place = find_dataset(LocalStore(tmp_path / "samples"), "dtd-train")
    assert dataset_state(place, roots, config, 4) == ("stale", "labels changed")
    assert len(read("dtd/train")) == 4
    assert len(list((tmp_path / "samples").glob("dtd-train-*"))) == 2


def test_the_same_data_elsewhere_are_the_same_dataset(tmp_path, dtd, read):
    read("dtd/train")
    before = sorted(p.name for p in (tmp_path / "samples").iterdir())
    (tmp_path / "moved").mkdir()
    (tmp_path / "dtd").rename(tmp_path / "moved/dtd")
    assert len(read("dtd/train", "moved")) == 3
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == before
