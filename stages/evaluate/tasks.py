"""From the plan of a result to what its probe is given: features and labels, patch tokens and label maps, or class texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.benchmarks.label_maps import class_map, depth_map
from unic_pipe.pipeline.cache.needs import FeatureNeed, compute_definition
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.encoders.projection import read_projection
from unic_pipe.pipeline.encoders.texts import class_texts
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.evaluation_plans import Plan
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.ladders import adapted
from unic_pipe.schemas.base import short
from unic_pipe.schemas.evaluations import ResultDefinition
from unic_pipe.schemas.probes import PROBES
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.evaluate.checks import Task, check_task
from unic_pipe.stages.evaluate.dense import DenseTask
from unic_pipe.stages.evaluate.dense_data import DenseData, Labels
from unic_pipe.stages.evaluate.features import Features, read_features
from unic_pipe.stages.evaluate.outcome import Setting
from unic_pipe.stages.evaluate.zero_shot import ZeroShotTask, in_order_of_texts, predicted_features

Load = Callable[[Setting], tuple[Any, Setting] | None]
"""Loads a task, and completes the setting; None after a stop."""


def loader_of(inventory: Inventory, plan: Plan, kept: Kept) -> Load:
    """How the task of a plan is loaded; nothing is, before it is called."""
    task = PROBES[plan.definition.probe].task
    if task == "labelled":
        train, test = (partial(_features, inventory, *need) for need in plan.needs)
        return Labelled(train, test, plan.benchmark, plan.encoder.name, plan.definition, plan.asked, kept)
    return partial(_zero_shot if task == "zero-shot" else _dense, inventory, plan)


class Kept:
    """The last training features, what was fitted on them, and the last task, so that probes share them."""

    def __init__(self) -> None:
        self.fits: dict[tuple[str, int], Any] = {}
        """Of the training set that was loaded last."""
        self.train: tuple[tuple[str, ...], Features] | None = None
        self.task: tuple[tuple[object, ...], Task] | None = None


@dataclass(frozen=True)
class Labelled:
    """A benchmark of labelled images for one encoder. `train` and `test` load their features when they are needed."""

    train: Callable[[], Features]
    """For instance `partial(read_features, cache, dataset)`."""
    test: Callable[[], Features]
    benchmark: str
    encoder: str
    definition: ResultDefinition
    asked: tuple[int, ...] | None
    """For each training class the test class that it counts as, in a test with another benchmark's probe."""
    kept: Kept

    def __call__(self, setting: Setting) -> tuple[Task, Setting]:
        """The checked task, and the setting with the fits that it may share."""
        kept, made = self.kept, self.definition
        train = self.encoder, made.features_train, made.benchmark_train
        key = self.benchmark, train, made.features_test, made.benchmark_test, self.asked
        if kept.task is None or kept.task[0] != key:
            kept.task = None  # lets go of the last one's memory first
            if kept.train is None or kept.train[0] != train:
                kept.train, kept.fits = None, {}
                kept.train = train, self.train()
            kept.task = key, check_task(kept.train[1], self.test(), self.asked)
        return kept.task[1], replace(setting, key="-".join(map(short, train[1:])), fits=kept.fits)


def _features(inventory: Inventory, need: FeatureNeed, dataset: Dataset) -> Features:
    return read_features(FeatureCache(inventory.feature_folder(need)), dataset)


def _dense(inventory: Inventory, plan: Plan, setting: Setting) -> tuple[DenseTask, Setting]:
    config = inventory.config.evaluate.dense[plan.benchmark]

    def convert(values: NDArray[np.int32]) -> Labels:
        return depth_map(values, config) if config.kind == "depth" else class_map(values, config)

    sides = [
        DenseData(
            FeatureCache(inventory.feature_folder(need)), dataset, inventory.folder / folder, config.pixels, convert
        )
        for (need, dataset), folder in zip(plan.needs, (config.train_labels, config.test_labels), strict=True)
    ]
    return DenseTask(config, *sides), setting


def _zero_shot(inventory: Inventory, plan: Plan, setting: Setting) -> tuple[ZeroShotTask, Setting] | None:
    config = inventory.config.evaluate.zero_shot[plan.benchmark]
    texts = class_texts(config, inventory.folder, setting.device)
    projection = read_projection(inventory.teacher(config.teacher))
    if plan.ladder is None:
        # The teacher's own features come from the cache, a student's predictions of them are computed.
        features, remarks = _features(inventory, *plan.needs[0]), []
    else:
        encoder = load_encoder(plan.encoder)
        student = adapted(plan.ladder, encoder, config.teacher, ("cls",))
        compute = compute_definition(inventory.config.compute, CENTER)
        features = predicted_features(student, plan.test, compute, setting.device, setting.stop)
        remarks = [f"Predicted by its ladder to {config.teacher}."]
    if setting.stop.requested:
        return None
    features = in_order_of_texts(features, texts)
    return ZeroShotTask(features, projection, texts, (*remarks, *features.remarks)), setting
