"""What is said of folders that may not have been meant so."""

import shutil

from indexing import Told, index


def test_what_may_not_have_been_meant_so_is_said(tmp_path, picture):
    def said(*paths, source="d", **fields):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        for number, path in enumerate(paths):
            (tmp_path / "d" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "d" / path).write_bytes(picture(99 if path.endswith("same.png") else number))
        told = Told()
        index(tmp_path, source, f"d{len(list((tmp_path / 'samples').glob('*')))}", progress=told, **fields)
        return " ".join(told.lines)

    (tmp_path / "samples").mkdir()
    assert "two classes" not in said("cat/a.png", "dog/a.png", "dog/b.png", "cat/b.png")
    assert "'01' and '1' are two classes" in said("1/a.png", "01/b.png", "2/c.png")
    assert r"'e\u0301' and '\xe9' are two classes" in said("e\u0301/a.png", "\xe9/b.png")
    assert "in two classes" not in said("cat/a.png", "cat/same.png", "cat/x/same.png", "dog/b.png")
    assert "1 image is in two classes (first: cat/same and dog/x/same)." in said("cat/same.png", "dog/x/same.png")
    assert "2 files not used: .csv .png (first: " in said(
        "cat/a.png", "dog/b.png", "labels.csv", "stray.png", source="d/*/"
    )
    assert "`label_field` is not used: it is for tars." in said("cat/a.png", "dog/b.png", label_field="x")
    assert "'Cat' and 'cat' are two classes, which differ in capitals" in said("Cat/a.png", "cat/b.png", "dog/c.png")
    assert "Are the folders in it the classes (cat, ...)? `source: d/x`" in said("x/cat/a.png", "x/dog/a.png")
    assert "hold the folders test and train, which" in said("cat/train/a.png", "cat/test/b.png", "dog/train/a.png")
    assert "not used: .jpg" in said("cat/a.png", "cat/a.jpg", "dog/a.png", image=".PNG")


def test_images_in_two_classes_are_found_a_part_at_a_time(tmp_path, picture, monkeypatch):
    for number in range(40):
        for name in ("cat", "dog") if number % 3 == 0 else ("cat",):
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "d" / name / f"{number}.png").write_bytes(picture(number))

    def said():
        told = Told()
        index(tmp_path, "d", "d", progress=told)
        shutil.rmtree(tmp_path / "samples")
        return [line for line in told.lines if "in two classes" in line]

    (at_once,) = said()
    assert "14 images are in two classes (first: " in at_once
    monkeypatch.setattr("unic_pipe.pipeline.samples.remarks._AT_ONCE", 3)
    assert said() == [at_once]
