"""Where samples are: moved roots, forms of sources, damaged and missing tars, other block sizes, pointers."""

import shutil

import pytest
from indexing import index, refused, state

from unic_pipe.pipeline.samples import find_dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.pointers import point, resolve_pointer
from unic_pipe.schemas.errors import UserError


def test_shards_that_went_away(shards):
    work = shards("t", [0, 1])
    dataset = index(work)
    (work / "data/t-0000.tar").unlink()
    assert "1 of 2 indexed shards are not there (first: data/t-0000.tar" in refused(work)
    assert state(dataset) == ("stale", "1 indexed shards are not there (first: data/t-0000.tar)")
    shutil.rmtree(work / "data")
    assert "nothing found for source" in refused(work)
    assert state(dataset)[0] == "stale"


def test_moved_roots(shards, tmp_path, picture):
    work = shards("t", [0, 1])
    dataset = index(work)
    (work / "elsewhere/a").mkdir(parents=True)
    (work / "elsewhere/b").mkdir()
    shutil.move(work / "data", work / "elsewhere/a/data")
    (work / "elsewhere/b/data").mkdir()
    shutil.move(work / "elsewhere/a/data/t-0001.tar", work / "elsewhere/b/data")
    moved = index(work, roots=("elsewhere/a", "elsewhere/b"))
    assert moved.store == dataset.store
    assert moved.read(7) == picture(1001)
    with pytest.raises(UserError, match=r"is not there") as caught:
        dataset.read(7)
    assert "samples.roots" in caught.value.hint


def test_absolute_sources_are_recorded_relative(shards, tmp_path, picture):
    work = shards("t", [0])
    dataset = index(work / "project", str(work / "data/t-*.tar"))
    assert dataset.manifest.source == "t-*.tar"
    assert dataset.manifest.segments[0].shards[0].path == "t-0000.tar"
    assert dataset.read(0) == picture(0)
    assert state(dataset, str(work / "data/t-*.tar"))[0] == "fresh"
    assert index(work / "project", "t-*.tar", roots=(work / "data",)).store == dataset.store


def test_train_and_val_swapped(shards):
    work = shards("t", [0])
    message = refused(work, rows=1_281_167)
    assert message == "dataset t: 6 rows, expected 1,281,167: are train and val swapped?"
    assert find_dataset(LocalStore(work / "samples"), "t") is None
    dataset = index(work, rows=6)
    assert "are train and val swapped" in refused(work, rows=7)
    assert state(dataset, rows=7) == ("stale", "6 rows, expected 7")


def test_several_damaged_tars_are_named_at_once(shards):
    work = shards("t", range(3))
    for n in (0, 2):
        path = work / f"data/t-{n:04d}.tar"
        path.write_bytes(path.read_bytes()[:700])
    message = refused(work)
    assert "t-0000.tar: the tar is cut" in message
    assert "t-0002.tar: the tar is cut" in message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pipe:cat x.tar", "is a command"),
        ("https://host/x.tar", "is a URL"),
        ("nothing/*.tar", "nothing found"),
        ("data/t-{0000..0003}.tar", "2 of 4 tars .* are not there"),
        ("data/t-0000.txt", "nothing found"),
        ("data/*", "is not a .tar file"),
    ],
)
def test_sources_that_cannot_be(shards, source, said):
    work = shards("t", [0, 1])
    (work / "data/notes.txt").write_text("x")
    with pytest.raises(UserError, match=said):
        index(work, source)


def test_every_form_of_source_finds_the_same_tars(shards):
    work = shards("t", [0, 1, 2])
    forms = ["data", "data/*.tar", "data/t-{0000..0002}.tar", "data/t-000[012].tar", "data/t-{0000,0001,0002}.tar"]
    assert len({index(work, form, f"d{i}").digest for i, form in enumerate(forms)}) == 1
    assert index(work, "data/t-0001.tar", "one").manifest.rows == 6


def test_compressed_and_split_folders(tmp_path, picture):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/t-0.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="is compressed; images") as caught:
        index(tmp_path, "data")
    assert "gunzip" in caught.value.hint
    with pytest.raises(UserError, match="is compressed; images"):
        index(tmp_path, "data/t-*.tar")
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / "n01").mkdir(parents=True)
    with pytest.raises(UserError, match="holds the splits train, val") as caught:
        index(tmp_path, "imagenet")
    assert "imagenet/train" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no samples in"):
        index(tmp_path, "empty")


def test_block_rows_cannot_change_under_an_index(shards):
    work = shards("t", [0])
    dataset = index(work)
    assert "its index has 4" in refused(work, block_rows=8)
    assert state(dataset, block_rows=8)[0] == "stale"


def test_another_source_and_back(shards):
    work = shards("t", [0, 1])
    shards("u", [7])
    first = index(work)
    second = index(work, "data/u-*.tar")
    assert second.store != first.store
    assert state(second)[1] == "source changed: data/u-*.tar → data/t-*.tar"
    assert index(work).store == first.store
    assert find_dataset(LocalStore(work / "samples"), "t").name == first.store.name


def test_pointers(tmp_path):
    (tmp_path / "a-00000001").mkdir()
    (tmp_path / "a-00000002").mkdir()
    assert resolve_pointer(tmp_path, "a") is None
    point(tmp_path, "a", "a-00000001")
    point(tmp_path, "a", "a-00000002")
    assert resolve_pointer(tmp_path, "a") == tmp_path / "a-00000002"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a-00000001", "a-00000002"]
    (tmp_path / "a-00000002").rmdir()
    assert resolve_pointer(tmp_path, "a") is None
    with pytest.raises(UserError, match="in the way"):
        point(tmp_path, "a-00000001", "a")
