"""What is used of a source, and what is left out: every image has its row, and the rest is said by kind and example."""

import io
import os
import shutil

import numpy as np
import pytest
from builders import encoder_definition, feature_definition
from PIL import Image

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.samples import dataset_state, index_dataset
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.samples.patterns import expand_braces
from unic_pipe.pipeline.samples.survey import survey
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import Decoding, ImageNames


class Told(SilentReporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def index(work, source, name="t", told=None, decoding=None, **fields):
    config = DatasetConfig(source=source, **fields)
    samples = SamplesConfig(datasets={name: config}, block_rows=4, **(decoding or {}))
    return index_dataset(work, name, config, samples, told)


def rows_of(dataset):
    labels = [None if label < 0 else label for label in dataset.labels().tolist()]
    return dict(sorted(zip([dataset.key(r) for r in dataset.rows()], labels, strict=True)))


def refused(*args, **fields):
    with pytest.raises(UserError) as caught:
        index(*args, **fields)
    return caught.value


@pytest.fixture
def put(tmp_path, picture):
    """Writes pictures under these names, below the working folder; their endings decide nothing about their bytes."""

    def write(*names):
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(picture(number))
        return tmp_path

    return write


@pytest.fixture
def tar(tmp_path, picture, write_tar):
    def write(*names, path="d/t-0.tar"):
        members = [(name, b"1" if name.endswith("cls") else picture(i)) for i, name in enumerate(names)]
        return write_tar(tmp_path / path, members).parents[1]

    return write


def test_a_key_ends_where_the_images_ending_begins(tar):
    told = Told()
    names = ["photo.2021.06.jpg", "photo.2021.06.cls", "photo.2021.07.jpg", "a.png", "a.cls", "x/b.v2.JPEG"]
    dataset = index(tar(*names), "d/t-0.tar", told=told)
    assert rows_of(dataset) == {"photo.2021.06": 1, "photo.2021.07": None, "a": 1, "x/b.v2": None}
    assert dataset.manifest.names == ImageNames(version=2)
    assert not [line for line in told.lines if "not used" in line]


@pytest.mark.parametrize("order", [1, -1])
def test_further_members_of_a_sample_are_counted_in_any_order(tar, order):
    told = Told()
    names = [
        "a.jpg",
        "a.seg.png",
        "a.cls",
        "a.seg.cls",
        "b.x.jpg",
        "b.x.seg.png",
        "b.x.txt",
        "c.txt",
        "README",
        "._a.jpg",
    ]
    dataset = index(tar(*names[::order]), "d/t-0.tar", told=told)
    assert rows_of(dataset) == {"a": 1, "b.x": None}
    said = [line.removeprefix("dataset t: ") for line in told.lines]
    assert "1 hidden image not used (first: ._a.jpg)." in said
    assert "4 members of 2 keys not used: .seg.cls .seg.png .txt (first: a.seg.cls)." in said
    assert "2 members without an image beside them: .txt no ending (first: README)." in said


def test_gif_and_its_like_are_images_and_other_endings_are_counted(tar, put):
    told = Told()
    dataset = index(tar("a.gif", "b.jfif", "c.JPE", "d.avif", "d.json"), "d/t-0.tar", told=told)
    assert sorted(rows_of(dataset)) == ["a", "b", "c"]
    assert told.lines[-1] == "dataset t: 2 members without an image beside them: .avif .json (first: d.avif)."
    told = Told()
    names = ["a.gif", "b.jfif", "c.jpe", "d.avif", "e", "f.heic", ".g.jpg"]
    work = put(*(f"f/{c}/{name}" for c in ("cat", "dog") for name in names))
    dataset = index(work, "f", "u", told)
    assert sorted(rows_of(dataset)) == [f"{c}/{n}" for c in ("cat", "dog") for n in "abc"]
    assert "dataset u: 6 files not used: .avif .heic no ending (first: cat/" in "\n".join(told.lines)
    assert "dataset u: 2 hidden images not used (first: cat/.g.jpg)." in told.lines


def test_an_index_made_before_keeps_its_rule_and_reports(put):
    work = put("f/cat/a.jpg", "f/dog/b.jpg")
    dataset = index(work, "f")
    old = dataset.manifest.model_copy(update={"names": ImageNames()})
    dataset.store.put("manifest.json", old.to_bytes())
    os.symlink(work / "f/dog", work / "f/cat/more")
    put("f/cat/new.gif", "f/cat/x.jpg")
    assert dataset_state(dataset.store, dataset.roots, DatasetConfig(source="f")) == (
        "partial",
        "1 new image since indexing",
    )
    told = Told()
    grown = index(work, "f", told=told)
    assert rows_of(grown) == {"cat/a": 0, "dog/b": 1, "cat/x": 0}
    assert grown.digest == dataset.digest
    assert "1 file not used: .gif (first: cat/new.gif)" in told.lines[-3]
    assert "1 folder not entered (first: cat/more)" in told.lines[-2]
    assert ".gif are read in new indexes" in told.lines[-1]
    assert dataset_state(grown.store, grown.roots, DatasetConfig(source="f"))[0] == "fresh"


def test_tars_of_an_index_made_before_keep_their_keys(tar):
    work = tar("a.png", "a.b.png", "c.d.png")
    config = DatasetConfig(source="d/*.tar")
    dataset = index(work, "d/*.tar")
    assert sorted(rows_of(dataset)) == ["a", "c.d"]
    old = dataset.manifest.model_copy(update={"names": ImageNames()})
    dataset.store.put("manifest.json", old.to_bytes())
    tar("e.png", "f.g.png", "h.gif", path="d/t-1.tar")
    told = Told()
    grown = index(work, "d/*.tar", told=told)
    assert sorted(rows_of(grown)) == ["a", "c.d", "e"]
    assert "2 members without an image beside them: .gif .png (first: f.g.png)" in told.lines[-2]
    assert dataset_state(grown.store, grown.roots, config)[0] == "fresh"


def test_a_setting_chooses_between_two_images_of_a_key(tar, put):
    work = tar("a.jpg", "a.png", "a.cls", "b.png", "b.jpg")
    problem = refused(work, "d/t-0.tar")
    assert "sample 'a' has two images" in problem.message
    assert "image: jpg" in problem.hint
    told = Told()
    chosen = index(work, "d/t-0.tar", told=told, image="jpg")
    assert rows_of(chosen) == {"a": 1, "b": None}
    assert "2 members of 2 keys not used: .png" in told.lines[-1]
    config = DatasetConfig(source="d/t-0.tar", image="png")
    assert dataset_state(chosen.store, chosen.roots, config) == ("stale", "image: jpg → png")
    assert "t.image is png; its index has jpg" in refused(work, "d/t-0.tar", image="png").message
    assert index(work, "d/t-0.tar", "u", image="png").digest != chosen.digest

    tar("a.left.png", "a.right.png", "a.cls", path="e/t-0.tar")
    assert rows_of(index(work, "e/t-0.tar", "v", image="left.png")) == {"a": 1}
    put("f/cat/a.jpg", "f/cat/a.mask.png", "f/dog/b.jpg")
    assert rows_of(index(work, "f", "w", image="jpg")) == {"cat/a": 0, "dog/b": 1}
    with pytest.raises(ValueError, match="image"):
        DatasetConfig(source="d", image="*.jpg")


def test_linked_folders_are_entered_once_and_circles_are_not(put):
    work = put("f/cat/a.jpg", "f/dog/b.jpg", "more/x.jpg", "more/deep/y.jpg")
    os.symlink("../../more", work / "f/cat/more")
    os.symlink("../../more", work / "f/cat/again")
    os.symlink("../cat", work / "f/cat/self")
    os.symlink("../../..", work / "more/deep/up")
    os.symlink(work / "more/x.jpg", work / "f/dog/linked.jpg")
    told = Told()
    dataset = index(work, "f", told=told)
    assert rows_of(dataset) == {"cat/a": 0, "cat/again/x": 0, "cat/again/deep/y": 0, "dog/b": 1, "dog/linked": 1}
    assert told.lines[-1].startswith("dataset t: 3 links to folders that are already read (first: cat/")
    assert dataset_state(dataset.store, dataset.roots, DatasetConfig(source="f"))[0] == "fresh"


def test_folders_of_storage_devices_are_no_images(put):
    work = put("f/cat/a.jpg", "f/cat/@eaDir/a.jpg/THUMB_M.jpg", "f/@eaDir/cat.jpg/THUMB.jpg", "f/dog/b.jpg/real.png")
    told = Told()
    assert rows_of(index(work, "f", told=told)) == {"cat/a": 0, "dog/b.jpg/real": 1}
    assert told.lines[-1] == "dataset t: 1 folder not entered (first: cat/@eaDir)."
    put("g/a.jpg", "g/@eaDir/a.jpg/THUMB.jpg", "g/folder.jpg/note.txt")
    flat = index(work, "g", "u")
    assert rows_of(flat) == {"a": None}
    assert dataset_state(flat.store, flat.roots, DatasetConfig(source="g"))[0] == "fresh"
    assert survey(work / "g").rows == 1


def test_pipes_are_no_images_and_links_to_nothing_are_missing_ones(put):
    work = put("f/cat/a.jpg", "f/dog/b.jpg")
    os.mkfifo(work / "f/cat/pipe.jpg")
    told = Told()
    assert sorted(rows_of(index(work, "f", told=told))) == ["cat/a", "dog/b"]
    assert told.lines[-1] == "dataset t: 1 name of an image that is no file (first: cat/pipe.jpg)."
    os.symlink("nowhere.jpg", work / "f/cat/dangling.jpg")
    assert "cat/dangling.jpg: cannot be read" in refused(work, "f", "u").message


@pytest.mark.parametrize(
    "name", ["a\u00a0b", "3.45\u202fPM", "\U0001f468\u200d\U0001f469", "e\u0301", "two\nlines", "\x1b[31m"]
)
def test_valid_utf8_is_a_name_everywhere(put, write_tar, picture, name):
    work = put(f"f/cat {name}/{name}.png", f"f/dog/{name}.png", f"f/dog/{name}.txt")
    told = Told()
    dataset = index(work, "f", told=told)
    assert sorted(rows_of(dataset)) == sorted([f"cat {name}/{name}", f"dog/{name}"])
    assert [dataset.read(r) for r in dataset.rows()]
    assert told.lines[-1].isprintable()
    write_tar(work / "t.tar", [(f"{name}.png", picture(1))])
    assert list(rows_of(index(work, "t.tar", "u"))) == [name]


def test_mixed_layouts_name_the_source_to_write(put, write_tar, picture):
    work = put("f/cat/a.jpg", "f/dog/b.jpg", "f/montage.png")
    problem = refused(work, "f")
    assert "montage.png beside folders of images (cat" in problem.message
    assert '`source: "f/*/"`' in problem.hint
    classes = index(work, "f/*/")
    assert rows_of(classes) == {"cat/a": 0, "dog/b": 1}
    assert index(work, f"{work}/f/*/").digest == classes.digest
    assert dataset_state(classes.store, classes.roots, DatasetConfig(source="f/*/"))[0] == "fresh"
    assert survey(f"{work}/f/*/").config.source == "f/*/"

    write_tar(work / "g/t-0.tar", [("a.png", picture(1))])
    put("g/cat/a.jpg", "g/dog/b.jpg")
    hint = refused(work, "g", "u").hint
    assert '`source: "g/*.tar"`' in hint
    assert '`source: "g/*/"`' in hint
    assert rows_of(index(work, "g/*.tar", "u")) == {"a": None}
    assert rows_of(index(work, "g/*/", "v")) == {"cat/a": 0, "dog/b": 1}

    write_tar(work / "h/part/t-0.tar", [("a.png", picture(1))])
    assert '`source: "h/*/*.tar"`' in refused(work, "h", "x").hint
    assert rows_of(index(work, "h/*/*.tar", "x")) == {"a": None}
    write_tar(work / "h/t-1.tar", [("b.png", picture(2))])
    assert "could mean more than one thing" in refused(work, "h", "y").message


def test_an_index_of_a_mixed_folder_stays(put):
    work = put("f/a.jpg", "f/b.jpg")
    dataset = index(work, "f")
    put("f/cat/c.jpg")
    assert dataset_state(dataset.store, dataset.roots, DatasetConfig(source="f"))[0] == "fresh"
    assert index(work, "f").manifest == dataset.manifest


def test_paths_that_are_there_are_taken_as_they_are(put, write_tar, picture):
    work = put("a{0..2}/cat/x.jpg", "a{0..2}/dog/y.jpg", "b [x]/cat/x.jpg", "b [x]/dog/y.jpg")
    assert sorted(rows_of(index(work, "a{0..2}"))) == ["cat/x", "dog/y"]
    assert sorted(rows_of(index(work, str(work / "a{0..2}"), "abs"))) == ["cat/x", "dog/y"]
    assert sorted(rows_of(index(work, "b [x]", "u"))) == ["cat/x", "dog/y"]
    for number in range(2):
        write_tar(work / f"c{{x,y}} [z]/t-{number}.tar", [(f"k{number}.png", picture(number))])
    assert sorted(rows_of(index(work, "c{x,y} [z]/t-{0..1}.tar", "v"))) == ["k0", "k1"]
    assert sorted(rows_of(index(work, "c{x,y} [z]/*.tar", "w"))) == ["k0", "k1"]


def test_braces_are_bounded():
    assert expand_braces("a{08..11}{x,y}")[:3] == ["a08x", "a08y", "a09x"]
    for bomb in ("{0..99999999}", "{0..9999}{0..9999}", "{0..999999999999999999}"):
        with pytest.raises(UserError, match="stands for"):
            expand_braces(bomb)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("background", "value"), [("none", 200), ("white", 255), ("grey", 128), ("black", 0)])
def test_transparent_images_lie_on_the_ground_that_is_set(background, value):
    clear = Image.new("RGBA", (4, 4), (200, 200, 200, 0))
    palette = clear.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    keyed = Image.new("RGB", (4, 4), (200, 200, 200))
    for data in (
        encoded(clear),
        encoded(Image.new("LA", (4, 4), (200, 0))),
        encoded(keyed, transparency=(200, 200, 200)),
        encoded(palette, transparency=bytes(256)),
        encoded(clear, "WEBP", lossless=True, exact=True),
    ):
        np.testing.assert_array_equal(decode_image(data, Decoding(background=background)), value)
    half = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert decode_image(half, Decoding(background="white"))[0, 0, 0] == 127
    opaque = encoded(Image.new("RGB", (2, 2), (9, 9, 9)))
    np.testing.assert_array_equal(decode_image(opaque, Decoding(background=background)), 9)


def test_ninety_megapixels_are_decoded():
    assert decode_image(encoded(Image.new("L", (10_000, 9_000), 7), compress_level=1)).shape == (9_000, 10_000, 3)


def test_decoding_is_recorded_and_part_of_features_only_where_it_is_set(put):
    work = put("f/cat/a.jpg", "f/dog/b.jpg")
    plain = index(work, "f")
    white = index(work, "f", decoding={"background": "white"})
    assert white.digest == plain.digest
    assert white.manifest.decoding == Decoding(background="white")
    config = DatasetConfig(source="f")
    state, reason = dataset_state(white.store, white.roots, config, 4, Decoding())
    assert (state, reason) == ("stale", "images are decoded differently: background white → none")
    assert dataset_state(white.store, white.roots, config, 4, Decoding(background="white"))[0] == "fresh"
    shutil.rmtree(work / "runs", ignore_errors=True)
    assert index(work, "f").manifest == plain.manifest


def test_features_of_another_decoding_are_others():
    plain = feature_definition(encoder_definition(8, 8, (2, 2)), 4, "float16")
    assert digest_of(plain.model_copy(update={"decoding": Decoding()})) == digest_of(plain)
    assert digest_of(plain.model_copy(update={"decoding": Decoding(background="white")})) != digest_of(plain)
