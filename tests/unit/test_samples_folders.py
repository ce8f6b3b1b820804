"""Class folders and flat folders with labels files, as indexed datasets."""

import os
import shutil

import numpy as np
import pytest
from indexing import Told, index

from unic_pipe.pipeline.samples import dataset_state
from unic_pipe.pipeline.samples.images import UndecodableImage
from unic_pipe.pipeline.workspace.results import benchmark_digest
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError


@pytest.fixture
def classes(tmp_path, picture):
    def write(start=0, count=10, names=("n01", "n02", "n03")):
        for c, name in enumerate(names):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            for i in range(start, start + count):
                (tmp_path / "train" / name / f"{name}_{i}.JPEG").write_bytes(picture(100 * c + i, "JPEG"))
        return tmp_path

    return write


@pytest.fixture
def flat(tmp_path, picture):
    (tmp_path / "val").mkdir()
    for i in range(6):
        (tmp_path / f"val/ILSVRC2012_val_{i + 1:08d}.JPEG").write_bytes(picture(i, "JPEG"))
    return tmp_path


def labels_by_key(dataset):
    return {dataset.key(int(r)): int(label) for r, label in zip(dataset.rows(), dataset.labels(), strict=True)}


def test_class_folders(classes, picture):
    work = classes()
    (work / "train/.hidden").mkdir()
    (work / "train/n01/notes.txt").write_text("not an image")
    (work / "train/n02/more").mkdir()
    (work / "train/n02/more/x.PNG").write_bytes(picture(7))
    told = Told()
    dataset = index(work, "train", progress=told)
    assert dataset.manifest.classes == ("n01", "n02", "n03")
    assert dataset.manifest.rows == 31
    assert dataset.manifest.labelled
    assert dataset.manifest.permuted
    assert "random" in told.lines[0]
    found = labels_by_key(dataset)
    assert found["n02/more/x"] == 1
    for row in dataset.rows():
        key = dataset.key(int(row))
        assert found[key] == int(key[2]) - 1
        if "more" not in key:
            number = 100 * (int(key[2]) - 1) + int(key.rpartition("_")[2])
            assert dataset.read(int(row)) == picture(number, "JPEG")
    assert len(set(dataset.labels()[:8].tolist())) > 1


def test_the_order_is_that_of_the_keys_alone(classes):
    work = classes()
    dataset = index(work, "train")
    shutil.copytree(work / "train", work / "copy")
    assert index(work, "copy", "u").digest == dataset.digest


def test_class_folders_grow(classes):
    work = classes()
    old = index(work, "train")
    before = [old.key(int(r)) for r in old.rows()]
    config = DatasetConfig(source="train")
    assert dataset_state(old.store, old.roots, config)[0] == "fresh"
    classes(start=10, count=3)
    assert dataset_state(old.store, old.roots, config) == ("partial", "9 new images since indexing")
    new = index(work, "train")
    assert new.store == old.store
    assert [new.key(int(r)) for r in old.rows()] == before
    assert new.manifest.rows == 39
    assert new.manifest.segments[1].first_row == 32
    assert dataset_state(new.store, new.roots, config)[0] == "fresh"
    again = index(work, "train")
    assert again.manifest == new.manifest


def test_new_classes_may_only_come_last(classes):
    work = classes()
    old = index(work, "train")
    classes(names=("n04",))
    new = index(work, "train")
    assert new.digest == old.digest
    assert new.manifest.classes == ("n01", "n02", "n03", "n04")
    classes(names=("n00",))
    with pytest.raises(UserError, match="n00 would change the numbers of classes after it"):
        index(work, "train")


def test_removed_and_renamed_images(classes):
    work = classes()
    dataset = index(work, "train")
    keys = [dataset.key(r) for r in dataset.rows()]
    kept = (work / "train/n02/n02_3.JPEG").read_bytes()
    config = DatasetConfig(source="train")

    os.remove(work / "train/n02/n02_3.JPEG")
    assert dataset_state(dataset.store, dataset.roots, config) == ("partial", "1 deleted image since indexing")
    told = Told()
    fewer = index(work, "train", progress=told)
    assert "1 of 30 indexed images were deleted or renamed (first: train/n02/n02_3.JPEG)" in told.lines[-1]
    assert fewer.digest == dataset.digest
    assert [fewer.key(r) for r in fewer.rows()] == keys
    assert fewer.manifest.gone == ("train/n02/n02_3.JPEG",)
    assert dataset_state(fewer.store, fewer.roots, config)[0] == "fresh"

    os.rename(work / "train/n02/n02_4.JPEG", work / "train/n02/other.JPEG")
    assert dataset_state(fewer.store, fewer.roots, config) == (
        "partial",
        "1 new image and 1 deleted image since indexing",
    )
    renamed = index(work, "train")
    assert renamed.manifest.gone == ("train/n02/n02_3.JPEG", "train/n02/n02_4.JPEG")
    assert renamed.manifest.rows == 31
    assert labels_by_key(renamed)["n02/other"] == 1
    row = keys.index("n02/n02_3")
    with pytest.raises(UndecodableImage, match="deleted"):
        renamed.read(row)

    (work / "train/n02/n02_3.JPEG").write_bytes(kept)
    back = index(work, "train")
    assert back.manifest.gone == ("train/n02/n02_4.JPEG",)
    assert back.read(row) == kept


def test_most_images_gone_is_not_a_deletion(classes):
    work = classes()
    dataset = index(work, "train")
    for number in range(10):
        os.remove(work / f"train/n01/n01_{number}.JPEG")
    emptied = index(work, "train")
    assert len(emptied.manifest.gone) == 10
    assert emptied.manifest.classes == ("n01", "n02", "n03")
    for number in range(6):
        os.remove(work / f"train/n02/n02_{number}.JPEG")
    with pytest.raises(UserError, match="images are not there"):
        index(work, "train")
    for number in range(10):
        os.rename(work / f"train/n03/n03_{number}.JPEG", work / f"train/n03/x{number}.JPEG")  # as many, and others
    with pytest.raises(UserError, match="16 of 30 indexed images are not there"):
        index(work, "train")
    shutil.rmtree(work / "train/n02")
    with pytest.raises(UserError, match="indexed shards are not there"):
        index(work, "train")
    assert index(work, "train/n03", "other").digest != dataset.digest


def test_labels_in_the_order_of_names_still_count_deleted_images(flat):
    (flat / "l.txt").write_text("3\n1\n2\n3\n1\n2\n")
    index(flat, "val", labels="l.txt")
    os.remove(flat / "val/ILSVRC2012_val_00000002.JPEG")
    fewer = index(flat, "val", labels="l.txt")
    assert fewer.labels().tolist() == [3, 1, 2, 3, 1, 2]
    (flat / "l.txt").write_text("3\n2\n3\n1\n2\n")
    with pytest.raises(UserError, match=r"1 is deleted or renamed \(first: .*_00000002.JPEG\): which line"):
        index(flat, "val", labels="l.txt")
    (flat / "l.txt").write_text("3\n1\n2\n5\n1\n2\n")
    assert index(flat, "val", labels="l.txt").labels().tolist() == [3, 1, 2, 5, 1, 2]


def test_a_list_follows_images_that_are_renamed_and_deleted(flat):
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 7)]
    (flat / "l.csv").write_text("".join(f"{name},{'cat' if i % 2 else 'dog'}\n" for i, name in enumerate(names)))
    before = index(flat, "val", labels="l.csv")
    os.rename(flat / "val" / names[0], flat / "val/new.JPEG")
    with pytest.raises(UserError, match=r"no label for new\.JPEG"):
        index(flat, "val", labels="l.csv")
    (flat / "l.csv").write_text((flat / "l.csv").read_text().replace(names[0], "new.JPEG"))
    after = index(flat, "val", labels="l.csv")
    assert after.manifest.labelled
    assert labels_by_key(after)["new"] == labels_by_key(before)[names[0][:-5]]
    assert benchmark_digest(after.manifest) != benchmark_digest(after.manifest.model_copy(update={"gone": ()}))


def test_folders_in_class_folders_are_looked_into(classes):
    work = classes()
    (work / "train/n01/more").mkdir()
    os.rename(work / "train/n01/n01_0.JPEG", work / "train/n01/more/a.JPEG")
    dataset, config = index(work, "train"), DatasetConfig(source="train")
    assert dataset_state(dataset.store, dataset.roots, config)[0] == "fresh"
    os.rename(work / "train/n01/more/a.JPEG", work / "train/n01/more/b.JPEG")  # the mtime of n01 is what it was
    assert dataset_state(dataset.store, dataset.roots, config)[0] == "partial"


def test_two_images_that_differ_by_extension(classes, picture):
    work = classes(names=("n01",))
    (work / "train/n01/n01_0.png").write_bytes(picture(5))
    keys = set(labels_by_key(index(work, "train")))
    assert {"n01/n01_0.JPEG", "n01/n01_0.png", "n01/n01_1"} <= keys
    (work / "train/n01/n01_1.png").write_bytes(picture(6))
    grown = index(work, "train")
    assert set(labels_by_key(grown)) == keys | {"n01/n01_1.png"}


def test_empty_class_and_bad_names(classes):
    work = classes()
    (work / "train/n00").mkdir()
    with pytest.raises(UserError, match="class folder without images"):
        index(work, "train")
    os.rmdir(work / "train/n00")
    with open(os.fsencode(work / "train/n01") + b"/\xff\xfe.jpg", "wb") as handle:
        handle.write(b"x")
    with pytest.raises(UserError, match="UTF-8"):
        index(work, "train")


def test_flat_folder_without_labels(flat, picture):
    dataset = index(flat, "val")
    assert [dataset.key(r) for r in range(6)] == [f"ILSVRC2012_val_{i + 1:08d}" for i in range(6)]
    assert dataset.read(3) == picture(3, "JPEG")
    assert not dataset.manifest.labelled
    assert dataset.manifest.layout == "flat-folder"


def test_numbers_per_line_are_kept_unless_the_first_class_is_said(flat):
    (flat / "one.txt").write_text("3\n1\n2\n3\n1\n2\n")
    (flat / "zero.txt").write_text("3\n0\n2\n3\n1\n2\n")
    told = Told()
    assert index(flat, "val", labels="one.txt", progress=told).labels().tolist() == [3, 1, 2, 3, 1, 2]
    assert "1 to 3 are kept as they are" in told.lines[-1]
    told = Told()
    shifted = index(flat, "val", "s", labels="one.txt", first_class=1, progress=told)
    assert shifted.labels().tolist() == [2, 0, 1, 2, 0, 1]
    assert "1 is subtracted: 0 to 2" in told.lines[-1]
    config = DatasetConfig(source="val", labels="one.txt")
    assert dataset_state(shifted.store, shifted.roots, config) == ("stale", "labels changed")
    with pytest.raises(UserError, match=r"class 0 is below first_class"):
        index(flat, "val", "z", labels="zero.txt", first_class=1)
    assert index(flat, "val", "u", labels="zero.txt").labels().tolist() == [3, 0, 2, 3, 1, 2]


def test_changed_labels_keep_the_identity(flat):
    (flat / "l.txt").write_text("3\n1\n2\n3\n1\n2\n")
    old = index(flat, "val", labels="l.txt")
    (flat / "l.txt").write_text("1\n1\n2\n3\n1\n2\n")
    config = DatasetConfig(source="val", labels="l.txt")
    assert dataset_state(old.store, old.roots, config) == ("stale", "labels changed")
    new = index(flat, "val", labels="l.txt")
    assert new.digest == old.digest
    assert new.labels()[0] == 1
    assert [s.rows_digest for s in new.manifest.segments] == [s.rows_digest for s in old.manifest.segments]
    assert dataset_state(new.store, new.roots, config)[0] == "fresh"


def test_name_and_class_lines(flat):
    names = sorted(p.name for p in (flat / "val").iterdir())
    (flat / "a.txt").write_text("".join(f"{n} {i % 3 + 1}\n" for i, n in reversed(list(enumerate(names)))))
    assert index(flat, "val", "a", labels="a.txt").labels().tolist() == [1, 2, 3, 1, 2, 3]
    lines = ["ImageId,PredictionString"] + [f"{n[:-5]},n0{i % 2 + 1} 1 2 3 4" for i, n in enumerate(names)]
    (flat / "b.csv").write_text("\n".join(lines))
    dataset = index(flat, "val", "b", labels="b.csv")
    assert dataset.labels().tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.manifest.classes == ("n01", "n02")


def test_the_devkits_numbers_are_put_in_the_order_of_class_folders(flat):
    scipy_io = pytest.importorskip("scipy.io")
    synsets = np.array(
        [(1, "n09", "kit fox", 0), (2, "n03", "setter", 0), (3, "n05", "badger", 0), (4, "n01", "animal", 3)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    kit = flat / "devkit/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n2\n3\n")
    told = Told()
    labels = "devkit/data/ILSVRC2012_validation_ground_truth.txt"
    index(flat, "val", "plain", labels=labels, progress=told)
    assert "meta.mat" in told.lines[0]
    scipy_io.savemat(kit / "meta.mat", {"synsets": synsets})
    dataset = index(flat, "val", labels=labels)
    assert dataset.manifest.classes == ("n03", "n05", "n09")
    assert dataset.labels().tolist() == [2, 0, 1, 2, 0, 1]
    (kit / "meta.mat").write_bytes(b"not a mat file" * 20)
    with pytest.raises(UserError, match=r"meta\.mat"):
        index(flat, "val", "broken", labels=labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n2\n", "2 labels for 6 images"),
        ("ILSVRC2012_val_00000001.JPEG 3\n", "no label for ILSVRC2012_val_00000002.JPEG"),
        ("1\n2\n3\nx\n1\n2\n", "line 1 .'1'. is neither"),
        ("9999999999\n" * 6, "too large"),
        ("", "no label for"),
    ],
)
def test_labels_files_that_cannot_be(flat, text, said):
    (flat / "l.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        index(flat, "val", labels="l.txt")


def test_a_labels_file_that_is_not_there(flat, classes):
    with pytest.raises(UserError, match=r"labels file 'x\.txt' is not there"):
        index(flat, "val", labels="x.txt")
    classes()
    with pytest.raises(UserError, match="is for a flat folder"):
        index(flat, "train", labels="x.txt")


def test_numbered_folders_keep_their_numbers(classes):
    work = classes(names=("0", "2", "10", "007"), count=2)
    dataset = index(work, "train")
    assert {key.split("/")[0]: n for key, n in labels_by_key(dataset).items()} == {"0": 0, "2": 2, "10": 10, "007": 7}
    assert dataset.manifest.classes is None
    classes(names=("5",), count=2)
    grown = index(work, "train")
    assert labels_by_key(grown)["5/5_0"] == 5
    assert labels_by_key(grown).items() >= labels_by_key(dataset).items()


def test_numbered_folders_of_an_earlier_index_stay(classes):
    work = classes(names=("0", "2", "10"), count=2)
    dataset = index(work, "train")
    earlier = dataset.manifest.model_copy(update={"classes": ("0", "10", "2"), "label_source": "folders"})
    dataset.store.put("manifest.json", earlier.to_bytes())
    assert dataset_state(dataset.store, dataset.roots, DatasetConfig(source="train"))[0] == "fresh"
    assert index(work, "train").manifest == earlier
    classes(names=("3",), count=2)
    grown = index(work, "train")
    assert grown.manifest.classes == ("0", "10", "2", "3")
    assert labels_by_key(grown)["3/3_0"] == 3


def test_a_single_folder_is_no_class_until_there_are_two(classes):
    work = classes(names=("all",))
    told = Told()
    one = index(work, "train", progress=told)
    assert not one.manifest.labelled
    assert one.manifest.classes is None
    assert "a single folder is no class" in told.lines[-1]
    classes(names=("more",), count=2)
    assert dataset_state(one.store, one.roots, DatasetConfig(source="train")) == ("stale", "labels changed")
    two = index(work, "train")
    assert two.manifest.classes == ("all", "more")
    assert two.manifest.segments[0].rows_digest == one.manifest.segments[0].rows_digest
    assert {key.split("/")[0]: n for key, n in labels_by_key(two).items()} == {"all": 0, "more": 1}


def test_names_are_not_shifted(classes):
    with pytest.raises(UserError, match="first_class is for classes that are numbers"):
        index(classes(), "train", first_class=1)


def test_labels_that_an_earlier_version_read_differently_are_taken_again(flat):
    (flat / "l.txt").write_text("1\n2\n3\n2\n1\n2\n")
    config = DatasetConfig(source="val", labels="l.txt")
    dataset = index(flat, "val", labels="l.txt")
    earlier = dataset.manifest.model_copy(
        update={"label_source": dataset.manifest.label_source.replace("list:", "file:")}
    )
    dataset.store.put("manifest.json", earlier.to_bytes())
    assert dataset_state(dataset.store, dataset.roots, config)[0] == "fresh"
    named = earlier.model_copy(update={"classes": ("a", "b", "c")})
    dataset.store.put("manifest.json", named.to_bytes())
    assert "read differently now" in dataset_state(dataset.store, dataset.roots, config)[1]
    again = index(flat, "val", labels="l.txt")
    assert again.digest == dataset.digest
    assert again.labels().tolist() == [1, 2, 3, 2, 1, 2]
    assert again.manifest.classes is None


def test_rows_keep_their_order_when_new_labels_are_sorted_by_class(flat):
    (flat / "l.txt").write_text("2\n0\n2\n0\n2\n0\n")
    old = index(flat, "val", labels="l.txt")
    (flat / "l.txt").write_text("0\n0\n0\n2\n2\n2\n")
    new = index(flat, "val", labels="l.txt")
    assert new.digest == old.digest
    assert new.labels().tolist() == [0, 0, 0, 2, 2, 2]
