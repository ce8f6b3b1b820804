"""What `init` writes fits what it saw: splits, sizes, names; and what it writes can be read and begun."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.samples.splits import folder_splits, split_of, tar_splits, usable_names
from unic_pipe.pipeline.samples.survey import Survey, survey_splits
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.base import is_name
from unic_pipe.schemas.config import Config, DatasetConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.students import StudentShape
from unic_pipe.stages.distill.blueprint import shape_of
from unic_pipe.stages.init import stage
from unic_pipe.stages.init.fit import Wishes
from unic_pipe.stages.init.stage import fitted, label_remarks, write_config

SMALL = StudentShape(architecture="vit_small_patch16_224", image_size=224, patch=16, width=384)


def seen(rows: int, classes: int | None = 10, side: int | None = 500, source: str = "data") -> Survey:
    return Survey(
        config=DatasetConfig(source=source), root=Path("/data"), layout="class-folders", files=rows, bytes=rows * 10**5,
        rows=rows, classes=classes, exact=True, bytes_per_s=1e9, side=side,
    )  # fmt: skip


def written(
    folder: Path, surveys: dict[str, Survey], gpu: bool = False, shape: StudentShape = SMALL, **wishes: object
) -> Config:
    """What `init` writes, as the other commands read it."""
    config = fitted(folder, surveys, ["timm:test_vit"], shape, Wishes(**wishes), gpu)  # type: ignore[arg-type]
    read = load_workspace(write_config(folder, config, surveys)).config
    assert read == config
    return read


@pytest.mark.parametrize(
    ("rows", "gpu", "batch", "block", "epochs"),
    [
        (3, False, 3, 16, 2000),
        (8, False, 8, 16, 2000),
        (57, False, 8, 16, 286),
        (610, False, 64, 32, 223),
        (5000, False, 512, 256, 223),
        (1_281_167, True, 512, 256, 200),
        (1_281_167, False, 512, 256, 20),
    ],
)
def test_training_fits_the_number_of_images(
    rows: int, gpu: bool, batch: int, block: int, epochs: int, tmp_path: Path
) -> None:
    config = written(tmp_path, {"train": seen(rows)}, gpu)
    student = config.students["main"]
    assert (student.optimizer.batch, config.samples.block_rows, student.optimizer.epochs) == (batch, block, epochs)
    assert student.optimizer.warmup_epochs == max(1, epochs // 20)
    assert epochs * (rows // batch) >= 2000
    assert batch <= rows
    assert (student.ladder.hidden, student.ladder.last_hidden) == (384, 1536)


@pytest.mark.parametrize(("rows", "calibrating"), [(5000, None), (1_281_167, 8192)])
def test_a_large_dataset_calibrates_with_more_images(rows: int, calibrating: int | None, tmp_path: Path) -> None:
    assert written(tmp_path, {"train": seen(rows)}, True).cache.calibration_rows == calibrating
    yaml = (tmp_path / "unic-pipe.yaml").read_text()
    assert ("calibration_rows: 8192" in yaml) == (calibrating is not None)


@pytest.mark.parametrize(
    ("cores", "gpu", "threads"), [(1, False, None), (2, False, None), (8, False, 8), (64, False, 16), (64, True, None)]
)
def test_training_on_a_cpu_uses_its_cores(
    cores: int, gpu: bool, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "usable_cores", lambda: cores)
    assert written(tmp_path, {"train": seen(5000)}, gpu).distill.threads == threads


@pytest.mark.parametrize(("side", "size", "recipe"), [(500, 224, "unic"), (100, 112, "unic"), (28, 64, "gentle")])
def test_student_is_as_large_as_the_images(side: int, size: int, recipe: str, tmp_path: Path) -> None:
    config = written(tmp_path, {"train": seen(600, side=side)})
    assert (config.students["main"].image_size, config.views.recipe) == (size, recipe)


def test_wishes_come_before_what_fits(tmp_path: Path) -> None:
    config = written(tmp_path, {"train": seen(600)}, image_size=96, epochs=7, batch=30, recipe="gentle", views=3)
    student = config.students["main"]
    assert (student.image_size, student.optimizer.epochs, student.optimizer.batch, student.streams) == (96, 7, 30, 1)
    assert (config.views.recipe, config.views.count) == ("gentle", 3)
    for wish, words in (({"batch": 700}, "there are 600 images"), ({"recipe": "unik"}, "No view recipe")):
        with pytest.raises(UserError, match=words):
            written(tmp_path, {"train": seen(600)}, **wish)


def test_a_start_from_weights_is_shorter_and_gentler(tmp_path: Path) -> None:
    cold, warm = (
        written(tmp_path / n, {"train": seen(9600)}, **w).students["main"]
        for n, w in (("c", {}), ("w", {"start": "pretrained"}))
    )
    assert (cold.optimizer.epochs, warm.optimizer.epochs) == (112, 28)
    assert (warm.init, warm.optimizer.warmup_epochs, warm.optimizer.frozen_steps) == ("pretrained", 1, 9)
    assert (warm.optimizer.lr, warm.optimizer.layer_decay) == (1e-4, 0.8)
    assert "mean" not in warm.model_fields_set, "those of the weights count"
    assert "batch_norm" not in warm.model_fields_set, "a ViT has none"


def test_a_start_from_weights_keeps_their_running_statistics(tmp_path: Path) -> None:
    shape = SMALL.model_copy(update={"batch_norm": True})
    cold, warm = (
        written(tmp_path / n, {"train": seen(9600)}, shape=shape, **w).students["main"]
        for n, w in (("c", {}), ("w", {"start": "pretrained"}))
    )
    assert (cold.batch_norm, warm.batch_norm) == ("batch", "frozen")


@pytest.mark.parametrize(
    ("names", "validation", "benchmarks"),
    [
        (["train"], None, {}),
        (["train", "validation"], "validation", {"validation": "train"}),
        (["training", "valid", "testing"], "valid", {"testing": "training"}),
        (["train", "dev", "test"], "dev", {"test": "train"}),
        (["train", "test-google", "test-twitter"], "test-google", {"test-google": "train", "test-twitter": "train"}),
        (
            ["digits-train", "digits-test", "shapes-train", "shapes-val"],
            "digits-test",
            {"digits-test": "digits-train", "shapes-val": "shapes-train"},
        ),
    ],
)
def test_every_split_has_its_part(
    names: list[str], validation: str | None, benchmarks: dict[str, str], tmp_path: Path
) -> None:
    surveys = {name: seen(100 - 10 * i) for i, name in enumerate(names)}
    config = written(tmp_path, surveys)
    assert config.distill.validation == validation
    assert {b.test: b.train for b in config.evaluate.benchmarks.values()} == benchmarks
    assert config.students["main"].dataset == names[0]


@pytest.mark.parametrize(
    ("tars", "expected"),
    [
        (
            ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"],
            {"train": "imagenet1k-train*.tar", "validation": "imagenet1k-validation*.tar"},
        ),
        (
            ["train-000.tar", "test-google-000.tar", "test-twitter-000.tar"],
            {"train": "train*.tar", "test-google": "test-google*.tar", "test-twitter": "test-twitter*.tar"},
        ),
        (
            ["test-000.tar", "test-google-000.tar", "train-000.tar"],
            {"test": "test[!A-Za-z][0-9]*.tar", "test-google": "test-google*.tar", "train": "train*.tar"},
        ),
        (
            ["My Digits v1.0-train-000.tar", "Shapes-train-000.tar"],
            {"My Digits v1.0-train": "My Digits v1.0-train*.tar", "Shapes-train": "Shapes-train*.tar"},
        ),
        (["train-00000-of-00002.tar", "val-part-1.tar"], {"train": "train*.tar", "val": "val*.tar"}),
        (["train-3fa9.tar", "train-b812.tar"], {}),
        (["train-0.tar", "other-0.tar"], {}),
    ],
)
def test_splits_of_tars(tars: list[str], expected: dict[str, str]) -> None:
    assert tar_splits(tars) == expected
    taken = [tar for pattern in expected.values() for tar in tars if fnmatchcase(tar, pattern)]
    assert not expected or sorted(taken) == sorted(tars), "each tar belongs to one split"


def test_splits_of_folders() -> None:
    assert folder_splits(["test-google", "test-twitter", "train"]) == ["test-google", "test-twitter", "train"]
    assert folder_splits(["cat", "test tube", "dog"]) == [], "a class is no split"
    assert folder_splits(["digits-test", "digits-train"]) == ["digits-test", "digits-train"]
    assert [split_of(n) for n in ("Validation", "imagenet1k-dev", "testing_2", "latest", "cat")] == [
        "val", "val", "test", None, None,
    ]  # fmt: skip


def test_names_become_usable_and_stay_different() -> None:
    found = usable_names(["My Digits v1.0-train", "My-Digits v1.0 train", "Größe", "…"])
    assert all(map(is_name, found.values()))
    assert len(set(found.values())) == len(found)


def test_paths_with_quotes_are_read_as_they_are(tmp_path: Path) -> None:
    surveys = {"train": seen(100, source='a "quoted": #name*.tar')}
    config = written(tmp_path, surveys)
    assert config.samples.datasets["train"].source == 'a "quoted": #name*.tar'


def test_teachers_get_names_that_nothing_else_has(tmp_path: Path) -> None:
    files = ("main", "val", "main-random", "x-center", "x", "a/x", "b/x")
    teachers = [f"checkpoint:{file}.pth" for file in files]
    surveys = {"train": seen(600)}
    config = fitted(tmp_path, surveys, teachers, SMALL, Wishes(), gpu=False)
    read = load_workspace(write_config(tmp_path, config, surveys)).config
    assert [teacher.encoder for teacher in read.teachers.values()] == teachers
    colliding = {"a": seen(600), "a-b": seen(60)}
    config = fitted(tmp_path, colliding, ["timm:b-c", "timm:c"], SMALL, Wishes(), gpu=False)
    with pytest.raises(UserError, match="would both be features/a-b-c"):
        write_config(tmp_path / "other", config, colliding)


@pytest.mark.parametrize(
    ("architecture", "width"), [("vit_small_patch16_224", 384), ("tf_efficientnet_lite0", 320), ("resnet50", 512)]
)
def test_projectors_are_no_larger_than_the_network_needs(architecture: str, width: int) -> None:
    assert shape_of(architecture, None).width == width


def test_benchmarks_that_cannot_be_scored_are_told(tmp_path: Path, picture: Any, write_tar: Any) -> None:
    """As far as names of folders and labels of tars say; what a look cannot tell is told after indexing."""

    def said(train: Sequence[str], test: Sequence[str]) -> list[str]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for split, classes in (("train", train), ("test", test)):
            for name in classes:
                (folder / split / name).mkdir(parents=True)
                (folder / split / name / "a.png").write_bytes(picture(0))
        return label_remarks(survey_splits(folder))

    assert said(["cat", "dog"], ["dog", "cat", "bird"]) == []
    assert said(["0", "1"], ["1", "2"]) == []
    (remark,) = said(["cat", "dog"], ["kat", "dag"])
    assert remark.startswith(
        "benchmark test will be skipped as it is: Training set train and test set test have no class"
    )
    (remark,) = said(["cat", "dog"], ["0", "1", "2"])
    assert "which cannot be places among them" in remark or "has 3 classes" in remark
    for split, labels in (("train", b"01"), ("test", b"78")):
        members = [
            (f"{n}.{end}", picture(n) if end == "png" else labels[n : n + 1]) for n in (0, 1) for end in ("png", "cls")
        ]
        write_tar(tmp_path / f"tars/{split}-0.tar", members)
    (remark,) = label_remarks(survey_splits(tmp_path / "tars"))
    assert "no class in common: 7, 8 there, 0, 1 here" in remark


def test_data_without_images_are_refused_in_the_words_of_indexing(tmp_path: Path, picture: Any, write_tar: Any) -> None:
    for folder, name in (("a/cat", "1.heic"), ("a/dog", "2.avif"), ("b/data", "train.parquet"), ("c/notes", "x.json")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(b"x")
    (tmp_path / "c" / "images").mkdir()
    (tmp_path / "c" / "images" / "a.png").write_bytes(picture(0))
    write_tar(tmp_path / "d" / "x.tar", [("inner.tar", bytes(1024))])
    for folder, said in (
        ("a", r"cat: a class folder without images; 1 file not used: \.heic"),
        ("b", r"data: a class folder without images; 1 file not used: \.parquet"),
        ("c", r"notes: a class folder without images; 1 file not used: \.json"),
        ("d", r"x\.tar: no images among its members \(found \.tar;"),
    ):
        with pytest.raises(UserError, match=said):
            survey_splits(tmp_path / folder)


def test_a_start_from_weights_is_judged_and_few_images_keep_a_rate_that_learns(tmp_path: Path) -> None:
    config = written(tmp_path, {"train": seen(200), "test": seen(80)}, start="pretrained")
    student, evaluate = config.students["main"], config.evaluate
    assert student.optimizer.lr * student.optimizer.batch / 256 == pytest.approx(1e-4)
    assert (evaluate.baseline, set(evaluate.benchmarks)) == (False, {"test"})
    assert (evaluate.encoders["start"].encoder, evaluate.encoders["start"].image_size) == (
        f"timm:{student.architecture}",
        student.image_size,
    )
    (remark,) = label_remarks({"photos": seen(200)})
    assert remark.startswith(
        "Nothing will be scored: no labelled test set was found. Put some images of each class into"
    )
    assert label_remarks({"train": seen(200), "test": seen(80)}) == []
