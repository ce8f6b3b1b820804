"""From the plan of a result that is no probe to the function that computes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import FeatureCache
from pipeline.dense import class_map, depth_map
from pipeline.encoders import load_encoder
from pipeline.encoders.projection import read_projection
from pipeline.features import compute_definition
from pipeline.inventory import Inventory
from pipeline.ladders import TeacherPrediction, predict_imported, predict_teacher
from pipeline.protocols import OtherPlan
from pipeline.stopping import Stop
from pipeline.texts import class_texts
from schemas.config import Scalar
from schemas.recipes import CENTER
from stages.evaluate.dense import measure
from stages.evaluate.dense_data import DenseData, Labels
from stages.evaluate.features import Features, read_features
from stages.evaluate.others import Measured, OtherJob
from stages.evaluate.zero_shot import check_order, predicted_features, zero_shot


def other_job(inventory: Inventory, plan: OtherPlan) -> OtherJob:
    """The job of a plan; nothing is loaded before it runs."""
    run = _zero_shot if plan.definition.probe == "zero-shot" else _dense
    return OtherJob(plan, partial(run, inventory, plan))


def _dense(inventory: Inventory, plan: OtherPlan, device: str, stop: Stop) -> Measured | None:
    config, probe = inventory.config.evaluate.dense[plan.benchmark], plan.definition.probe
    assert probe in ("segmentation", "in-context", "depth")

    def convert(values: NDArray[np.int32]) -> Labels:
        return depth_map(values, config) if probe == "depth" else class_map(values, config)

    sides = [
        DenseData(
            FeatureCache(inventory.feature_folder(need)), dataset, inventory.folder / folder, config.pixels, convert
        )
        for (need, dataset), folder in zip(plan.needs, (config.train_labels, config.test_labels), strict=True)
    ]
    return measure(probe, config, sides[0], sides[1], device, stop)


def _zero_shot(inventory: Inventory, plan: OtherPlan, device: str, stop: Stop) -> Measured | None:
    config = inventory.config.evaluate.zero_shot[plan.benchmark]
    texts = class_texts(config, inventory.folder, device)
    check_order(texts, plan.datasets[0])
    teacher = inventory.teacher(config.teacher)
    projection = read_projection(teacher)
    features = _features(inventory, plan, config.teacher, device, stop)
    if stop.requested:
        return None
    chosen: dict[str, Scalar] = {"test_samples": len(features.x_ND), "classes": len(texts.names)}
    remarks = [f"Predicted by its ladder to {config.teacher}."] if plan.ladder is not None else []
    if features.left_out:
        remarks.append(f"{features.left_out:,} rows of {features.name} have no usable features: left out.")
    return Measured(zero_shot(features, projection, texts, device), chosen, tuple(remarks))


def _features(inventory: Inventory, plan: OtherPlan, teacher: str, device: str, stop: Stop) -> Features:
    """The teacher's own features come from the cache, a student's predictions of them are computed."""
    if plan.ladder is None:
        need, dataset = plan.needs[0]
        return read_features(FeatureCache(inventory.feature_folder(need)), dataset)
    encoder = load_encoder(plan.encoder)
    predict: TeacherPrediction
    if isinstance(plan.ladder, Path):
        predict = predict_imported(plan.ladder, encoder, teacher)
    else:
        predict = predict_teacher(plan.ladder, encoder, teacher)
    return predicted_features(
        predict, plan.datasets[0], compute_definition(inventory.config.compute, CENTER), device, stop
    )
