"""Losses about the classes of the images: means by class, which class each image has, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import BLOCK, STUDENT, TEACHERS, World, assert_same_student
from pydantic import ValidationError

from unic_pipe.pipeline.samples import index_dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.integrity import student_findings
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import DatasetConfig, LadderConfig, LossConfig, SamplesConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.distill.data.classes import of_known_classes
from unic_pipe.stages.distill.data.feed import Demand, Feed
from unic_pipe.stages.distill.data.frozen import freeze
from unic_pipe.stages.distill.data.rows import Rows, training_rows, usable_rows
from unic_pipe.stages.distill.model.distiller import Distiller

ND = {"terms": [{"token": "cls", "kind": "class_direction"}], "balance": "sum", "standardize": "none"}


def student(**loss: Any) -> StudentConfig:
    changes = {
        "loss": LossConfig.model_validate_json(json.dumps({**ND, **loss})),
        "optimizer": STUDENT.optimizer.model_copy(update={"epochs": 1, "lr": 0.05}),
        "ladder": LadderConfig(kind="linear"),
    }
    return STUDENT.model_copy(update=changes)


def label(world: World, name: str, numbers: Sequence[int]) -> None:
    """Give a dataset's images labels; its features stay what they are."""
    (world.folder / f"{name}.txt").write_text("\n".join(map(str, numbers)))
    config = DatasetConfig(source=f"images/{name}", labels=f"{name}.txt")
    index_dataset(world.folder, name, config, SamplesConfig(datasets={name: config}, block_rows=BLOCK))


@pytest.fixture
def labelled(world: World) -> World:
    rows = world.source().dataset.manifest.rows
    label(world, "train", [row % 3 for row in range(rows)])
    label(world, "val", [row % 5 for row in range(world.source(name="val").dataset.manifest.rows)])
    return world


def training(world: World, config: StudentConfig) -> Rows:
    (rows,) = training_rows([world.source()], world.definition(config))
    return rows


def means_of(rows: Rows, teacher: str) -> np.ndarray[Any, Any]:
    cache, label_N = rows.source.caches[teacher], rows.source.dataset.labels_by_row()[rows.rows_N]
    values_ND = np.stack([cache.read_block(0, "cls", r // BLOCK).values[r % BLOCK] for r in rows.rows_N])
    return np.stack([values_ND[label_N == c].astype(np.float64).mean(0) for c in range(3)])


def test_class_means_are_frozen_and_guarded(labelled: World) -> None:
    """Over all usable rows of view 0; gone, they are measured again."""
    assert not labelled.distill(student(), stop_after=2)
    (folder,) = labelled.folder.glob("students/main-*")
    file = folder / "statistics" / "targets" / "alpha.cls.classes.npy"
    np.testing.assert_allclose(np.load(file), means_of(training(labelled, student()), "alpha"), rtol=1e-12)
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert student_findings(folder, quick=False)[1] == [("statistics/targets/alpha.cls.classes.npy", "content")]
    file.unlink()
    assert labelled.distill(student())
    assert file.read_bytes() == before


@pytest.mark.parametrize("standardize", ["none", "exact", "phi_s"])
def test_every_image_has_the_mean_of_its_class_in_the_targets_units(labelled: World, standardize: str) -> None:
    config = student(standardize=standardize)
    definition, rows = labelled.definition(config), training(labelled, config)
    (labelled.folder / "new").mkdir()
    frozen = freeze(LocalStore(labelled.folder / "new"), "main", definition, [rows])
    model = Distiller(config, definition.teachers, torch.device("cpu"), frozen.statistics, frozen.targets)
    source = labelled.source(name="val")
    validation = Rows(source, usable_rows(source.dataset, source.caches, 1, ("cls",), source.dataset.blocks))
    known = of_known_classes(validation, [rows])
    assert len(known.rows_N) < len(validation.rows_N)
    demand = Demand(config.image_size, None, model.standards, len(TEACHERS), 0, 1, classes=True)
    with ThreadPoolExecutor(1) as pool:
        feed = Feed((rows,), (known,), definition, pool, torch.device("cpu"), {})
        batches = [*feed.batches([demand], 0, 2), *feed.validation_batches(known, [demand])]
    for batch, labels in zip(batches, [rows, rows, *[known] * 9], strict=False):
        class_B = labels.source.dataset.labels_by_row()[batch.plan.rows_B]
        for teacher in TEACHERS:
            expected = model.standards[teacher, "cls"].of(means_of(rows, teacher))[class_B]
            found = model._known(batch)[teacher, "cls"]["centers"]
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert len(batches) > 2


def test_the_loss_is_learned_from_validated_and_resumed_to_the_same_bits(labelled: World, tmp_path: Any) -> None:
    other = World(shutil.copytree(labelled.folder, tmp_path / "other", symlinks=True))
    assert labelled.distill(student(), validation=True)
    assert not other.distill(student(), stop_after=2, validation=True)
    assert other.distill(student(), validation=True)
    assert_same_student(labelled, other)


def test_new_labels_make_another_student_and_none_are_refused(labelled: World, world: World) -> None:
    before = labelled.definition(student())
    plain = labelled.definition(STUDENT)
    label(labelled, "train", [row % 2 for row in range(labelled.source().dataset.manifest.rows)])
    after = labelled.definition(student())
    assert digest_of(before.model_copy(update={"labels": after.labels})) == digest_of(after) != digest_of(before)
    assert digest_of(labelled.definition(STUDENT)) == digest_of(plain)
    label(labelled, "train", [-1, *[0] * (labelled.source().dataset.manifest.rows - 1)])
    with pytest.raises(UserError, match="not all images of dataset train have a label"):
        labelled.definition(student())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": {**ND, "standardize": "ema"}}, "nothing moves class means"),
        ({"loss": ND, "dataset": {"a": 1.0, "b": 1.0}}, "class means are those of one dataset"),
    ],
)
def test_what_has_no_class_means_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StudentConfig.model_validate_json(json.dumps(settings))
    assert words in str(caught.value)
