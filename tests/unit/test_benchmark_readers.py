"""Every reader on a miniature of the real layout of its benchmark."""

import json
import pickle

import numpy as np
import pytest
import scipy.io

from unic_pipe.pipeline.benchmarks.imagenet import counted_as, wnids
from unic_pipe.schemas.errors import UserError

W = wnids()


def test_aircraft(put, text, read, counts):
    base = "fgvc-aircraft-2013b/data"
    text(f"{base}/variants.txt", "707-320\nA300B4\nBoeing 717\n")
    text(f"{base}/images_variant_trainval.txt", "0000001 Boeing 717\n0000002 707-320\n")
    text(f"{base}/images_variant_test.txt", "0000003 A300B4\n")
    put(*(f"{base}/images/{n:07d}.jpg" for n in (1, 2, 3, 4)))
    counts("aircraft", 2, 1)
    assert read("aircraft/train") == {"images/0000001": "Boeing 717", "images/0000002": "707-320"}
    assert read("aircraft/test") == {"images/0000003": "A300B4"}


def annotations(rows, *fields):
    """A MATLAB structure array as the cars' devkit has it."""
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row)
    return {"annotations": array}


def test_cars_in_both_forms(tmp_path, put, read, counts):
    put("stanford_cars/cars_train/00001.jpg", "stanford_cars/cars_train/00002.jpg", "stanford_cars/cars_test/00001.jpg")
    (tmp_path / "stanford_cars/devkit").mkdir()
    box = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    scipy.io.savemat(
        tmp_path / "stanford_cars/devkit/cars_train_annos.mat",
        annotations([(1, 1, 5, 5, 2, "00001.jpg"), (1, 1, 5, 5, 1, "00002.jpg")], *box, "class", "fname"),
    )
    scipy.io.savemat(
        tmp_path / "stanford_cars/cars_test_annos_withlabels.mat",
        annotations([(1, 1, 5, 5, 2, "00001.jpg")], *box, "class", "fname"),
    )
    counts("cars196", 2, 1)
    assert read("cars196/train") == {"cars_train/00001": "2", "cars_train/00002": "1"}
    assert read("cars196/test") == {"cars_test/00001": "2"}

    put("one/car_ims/000001.jpg", "one/car_ims/000002.jpg", "one/car_ims/000003.jpg")
    rows = [("car_ims/000001.jpg", 1, 1, 5, 5, 2, 0), ("car_ims/000002.jpg", 1, 1, 5, 5, 1, 0),
            ("car_ims/000003.jpg", 1, 1, 5, 5, 2, 1)]  # fmt: skip
    scipy.io.savemat(tmp_path / "one/cars_annos.mat", annotations(rows, "relative_im_path", *box, "class", "test"))
    assert read("cars196/train", "one", "one") == {"car_ims/000001": "2", "car_ims/000002": "1"}
    assert read("cars196/test", "one", "two") == {"car_ims/000003": "2"}


@pytest.mark.parametrize("base", ["dtd", "dtd/dtd"])
def test_dtd_where_the_archive_and_where_torchvision_puts_it(put, text, read, counts, base):
    text(f"{base}/labels/train1.txt", "banded/banded_0002.jpg\nwoven/woven_0001.jpg\n")
    text(f"{base}/labels/val1.txt", "banded/banded_0004.jpg\n")
    text(f"{base}/labels/test1.txt", "woven/woven_0009.jpg\nbanded/banded_0001.jpg\n")
    text(f"{base}/labels/train2.txt", "woven/woven_0009.jpg\n")
    put(*(f"{base}/images/banded/banded_{n:04d}.jpg" for n in (1, 2, 4)))
    put(f"{base}/images/woven/woven_0001.jpg", f"{base}/images/woven/woven_0009.jpg")
    counts("dtd", 3, 2)
    train = {
        "images/banded/banded_0002": "banded",
        "images/banded/banded_0004": "banded",
        "images/woven/woven_0001": "woven",
    }
    assert read("dtd/train") == train
    assert read("dtd/test") == {"images/banded/banded_0001": "banded", "images/woven/woven_0009": "woven"}


def test_eurosat_splits_every_class_alike_and_always_the_same(tmp_path, put, read, counts):
    names = ("AnnualCrop", "Forest", "SeaLake")
    put(*(f"eurosat/2750/{name}/{name}_{n}.jpg" for name in names for n in range(1, 8)))
    counts("eurosat", 15, 6)
    train, test = read("eurosat/train"), read("eurosat/test")
    assert len(train) == 15
    assert not train.keys() & test.keys()
    assert sorted(test.values()) == sorted(names * 2)
    # The split is part of what the benchmark's name means, so it never changes.
    assert {key.rpartition("_")[2] for key in test if "AnnualCrop" in key} == {"1", "3"}
    assert {key.rpartition("_")[2] for key in test if "Forest" in key} == {"4", "7"}
    assert {key.rpartition("_")[2] for key in test if "SeaLake" in key} == {"1", "2"}


def test_flowers(tmp_path, put, read, counts):
    put(*(f"flowers-102/jpg/image_{n:05d}.jpg" for n in range(1, 7)))
    scipy.io.savemat(tmp_path / "flowers-102/imagelabels.mat", {"labels": np.array([[3, 1, 2, 2, 1, 3]], np.uint8)})
    sets = {"trnid": np.array([[6, 2]]), "valid": np.array([[3]]), "tstid": np.array([[1, 4, 5]])}
    scipy.io.savemat(tmp_path / "flowers-102/setid.mat", sets)
    counts("flowers", 3, 3)
    assert read("flowers/train") == {"jpg/image_00002": "1", "jpg/image_00003": "2", "jpg/image_00006": "3"}
    assert read("flowers/test") == {"jpg/image_00001": "3", "jpg/image_00004": "2", "jpg/image_00005": "1"}


def test_pets(put, text, read, counts):
    text(
        "oxford-iiit-pet/annotations/trainval.txt",
        "#Image CLASS-ID SPECIES BREED ID\nAbyssinian_100 1 1 1\nyorkshire_terrier_9 2 2 25\n",
    )
    text("oxford-iiit-pet/annotations/test.txt", "yorkshire_terrier_10 2 2 25\n Abyssinian_201 1 1 1\n")
    for name in ("Abyssinian_100", "yorkshire_terrier_9", "yorkshire_terrier_10", "Abyssinian_201"):
        put(f"oxford-iiit-pet/images/{name}.jpg")
    text("oxford-iiit-pet/images/Abyssinian_100.mat", "the real archive has some of these")
    counts("pets", 2, 2)
    assert read("pets/train") == {
        "images/Abyssinian_100": "Abyssinian",
        "images/yorkshire_terrier_9": "yorkshire_terrier",
    }
    assert read("pets/test")["images/yorkshire_terrier_10"] == "yorkshire_terrier"


def test_food(put, text, read, counts):
    text("food-101/meta/train.json", json.dumps({"waffles": ["waffles/1", "waffles/2"], "apple_pie": ["apple_pie/7"]}))
    text("food-101/meta/test.json", json.dumps({"apple_pie": ["apple_pie/8"], "waffles": ["waffles/3"]}))
    put(
        *(
            f"food-101/images/{path}.jpg"
            for path in ("waffles/1", "waffles/2", "waffles/3", "apple_pie/7", "apple_pie/8")
        )
    )
    counts("food101", 3, 2)
    assert read("food101/train") == {
        "images/waffles/1": "waffles", "images/waffles/2": "waffles", "images/apple_pie/7": "apple_pie",
    }  # fmt: skip
    assert read("food101/test") == {"images/waffles/3": "waffles", "images/apple_pie/8": "apple_pie"}


@pytest.mark.parametrize("lists", ["SUN397", "."])
def test_sun(put, text, read, counts, lists):
    text(f"{lists}/Training_01.txt", "/a/abbey/sun_1.jpg\n/a/apartment_building/outdoor/sun_2.jpg\n/b/bar/sun_3.jpg\n")
    text(f"{lists}/Testing_01.txt", "/b/bar/sun_4.jpg\n")
    put("SUN397/a/abbey/sun_1.jpg", "SUN397/a/apartment_building/outdoor/sun_2.jpg")
    put("SUN397/b/bar/sun_3.jpg", "SUN397/b/bar/sun_4.jpg")
    counts("sun397", 3, 1)
    assert read("sun397/train")["a/apartment_building/outdoor/sun_2"] == "a/apartment_building/outdoor"
    assert read("sun397/test") == {"b/bar/sun_4": "b/bar"}


@pytest.mark.parametrize("images", ["train_val2018", "2018"])
def test_inat_also_as_torchvision_renames_it(put, text, read, counts, images):
    categories = [{"id": 0, "name": "Aves a"}, {"id": 1, "name": "Aves b"}, {"id": 2, "name": "Plantae c"}]

    def lists(*samples):
        files = [{"id": n, "file_name": f"train_val2018/{path}"} for n, path, _ in samples]
        labels = [{"id": n + 50, "image_id": n, "category_id": c} for n, _, c in reversed(samples)]
        return json.dumps({"info": {}, "images": files, "annotations": labels, "categories": categories})

    text("train2018.json", lists((5, "Aves/1/a.jpg", 1), (6, "Plantae/2/b.jpg", 2)))
    text("val2018.json", lists((7, "Aves/0/c.jpg", 0)))
    put(f"{images}/Aves/1/a.jpg", f"{images}/Plantae/2/b.jpg", f"{images}/Aves/0/c.jpg")
    counts("inat2018", 2, 1)
    assert read("inat2018/train") == {f"{images}/Aves/1/a": "Aves b", f"{images}/Plantae/2/b": "Plantae c"}
    assert read("inat2018/test") == {f"{images}/Aves/0/c": "Aves a"}


def test_cog_by_its_authors_pickles(tmp_path, put, read, counts):
    levels = [["n00000003", "n00000001"], ["n00000002"]]
    splits = {
        wnid: {
            "train": np.array([f"{wnid}/{wnid}_1.JPEG", f"/{wnid}/{wnid}_2.JPEG"]),
            "test": np.array([f"{wnid}/{wnid}_3.JPEG"]),
        }
        for wnid in ("n00000001", "n00000002", "n00000003")
    }
    put(*(f"cog/{wnid}/{wnid}_{n}.JPEG" for wnid in splits for n in (1, 2, 3)))
    (tmp_path / "cog/cog_levels_mapping_file.pkl").write_bytes(pickle.dumps(levels, protocol=2))
    (tmp_path / "cog/cog_concepts_split_file.pkl").write_bytes(pickle.dumps(splits, protocol=2))
    counts("cog-l1", 4, 2)
    counts("cog-l2", 2, 1)
    assert set(read("cog-l1/train").values()) == {"n00000001", "n00000003"}
    assert read("cog-l1/test") == {"n00000001/n00000001_3": "n00000001", "n00000003/n00000003_3": "n00000003"}
    assert read("cog-l2/test") == {"n00000002/n00000002_3": "n00000002"}


class Bomb:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, put, read, counts, capsys):
    put("cog/n00000001/n00000001_1.JPEG")
    (tmp_path / "cog/cog_levels_mapping_file.pkl").write_bytes(pickle.dumps([[Bomb()]]))
    (tmp_path / "cog/cog_concepts_split_file.pkl").write_bytes(pickle.dumps({}))
    counts("cog-l1", 1, 1)
    with pytest.raises(UserError, match="refused"):
        read("cog-l1/train")
    assert capsys.readouterr().out == ""


def test_imagenet_with_class_folders(put, read, counts):
    put(
        f"imagenet/train/{W[5]}/{W[5]}_1.JPEG",
        f"imagenet/train/{W[900]}/{W[900]}_2.JPEG",
        f"imagenet/val/{W[900]}/ILSVRC2012_val_00000001.JPEG",
    )
    counts("in1k", 2, 1)
    assert read("in1k/train") == {f"train/{W[5]}/{W[5]}_1": W[5], f"train/{W[900]}/{W[900]}_2": W[900]}
    assert read("in1k/test") == {f"val/{W[900]}/ILSVRC2012_val_00000001": W[900]}


def test_imagenet_with_a_flat_validation_folder(tmp_path, put, text, read, counts):
    put(*(f"imagenet/val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)))
    counts("in1k", 1, 3)
    with pytest.raises(UserError, match=r"meta\.mat"):
        read("in1k/test")
    text("imagenet/ILSVRC2012_validation_ground_truth.txt", "2\n1\n2\n")
    synsets = np.zeros((2, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    synsets[0, 0], synsets[1, 0] = (1, W[7], 0), (2, W[3], 0)
    scipy.io.savemat(tmp_path / "imagenet/meta.mat", {"synsets": synsets})
    found = read("in1k/test")
    assert [found[f"val/ILSVRC2012_val_{n:08d}"] for n in (1, 2, 3)] == [W[3], W[7], W[3]]


def test_test_sets_of_imagenets_probe(put, read, counts):
    put(f"imagenet-r/{W[1]}/art_0.jpg", f"imagenet-r/{W[9]}/toy_3.jpg")
    put(f"sketch/{W[0]}/sketch_0.JPEG")
    put("imagenetv2-matched-frequency-format-val/0/a.jpeg", "imagenetv2-matched-frequency-format-val/10/b.jpeg",
        "imagenetv2-matched-frequency-format-val/2/c.jpeg")  # fmt: skip
    counts("in-r", None, 2)
    counts("in-sketch", None, 1)
    counts("in-v2", None, 3)
    assert read("in-r/test", "imagenet-r") == {f"{W[1]}/art_0": W[1], f"{W[9]}/toy_3": W[9]}
    assert read("in-sketch/test") == {f"{W[0]}/sketch_0": W[0]}
    assert read("in-v2/test") == {"0/a": W[0], "10/b": W[10], "2/c": W[2]}


def test_objectnet_by_the_mappings_that_it_ships(tmp_path, put, text, read, counts):
    base = "objectnet-1.0"
    put(
        f"{base}/images/alarm_clock/a.png",
        f"{base}/images/banana/b.png",
        f"{base}/images/weight_scale/c.png",
        f"{base}/images/bread_knife/d.png",
    )
    folders = {
        "alarm_clock": "Alarm clock",
        "banana": "Banana",
        "bread_knife": "Bread knife",
        "weight_scale": "Weight scale",
    }
    text(f"{base}/mappings/folder_to_objectnet_label.json", json.dumps(folders))
    known = {
        "Alarm clock": "analog clock; digital clock",
        "Banana": "banana",
        "Weight scale": "scale, weighing machine",
    }
    text(f"{base}/mappings/objectnet_to_imagenet_1k.json", json.dumps(known))
    names = ["banana", "digital clock", "something else", "scale, weighing machine", "analog clock"]
    text(f"{base}/mappings/imagenet_to_label_2012_v2", "\n".join(names) + "\n")
    numbers = {"954": 0, "530": 1, "3": 2, "778": 3, "409": 4}
    text(f"{base}/mappings/pytorch_to_imagenet_2012_id.json", json.dumps(numbers))
    counts("objectnet", None, 3)
    assert read("objectnet/test") == {
        "images/alarm_clock/a": f"{W[409]}+{W[530]}",
        "images/banana/b": W[954],
        "images/weight_scale/c": W[778],
    }


def test_classes_are_matched_by_wordnet_id(tmp_path):
    class Names:
        def __init__(self, *classes):
            self.name, self.classes = "x", classes or None

    train = Names("n1", "n2", "n3", "n4")
    assert counted_as(train, Names("n3+n1", "n4")) == (0, -1, 0, 1)
    assert counted_as(Names(), Names(W[999], W[0]))[::999] == (1, 0)
    with pytest.raises(UserError, match="no class in common"):
        counted_as(train, Names("n9"))
    with pytest.raises(UserError, match="no class names"):
        counted_as(train, Names())
