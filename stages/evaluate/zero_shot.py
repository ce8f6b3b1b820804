"""Zero-shot classification: the class whose text embedding is nearest to the image's, by cosine similarity.

A teacher's images enter the space of its texts by its own final projection. A student has no such space; its ladder
predicts the teacher's cls feature, which, no longer standardized, takes the same projection (UNIC-L).

Shapes: N samples, C classes, E dimensions of the teacher's cls feature, F dimensions of the text embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from unic_pipe.pipeline.encoders.projection import Projection
from unic_pipe.pipeline.encoders.texts import ClassTexts
from unic_pipe.pipeline.extraction.forward import EncoderRun, features_of_rows
from unic_pipe.pipeline.process.crew import crew_of
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.samples.classes import ClassMap, match_texts
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.students.adaptors import AdaptedStudent
from unic_pipe.pipeline.views.rows import Rendering
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import ComputeDefinition
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.evaluate.checks import check_side
from unic_pipe.stages.evaluate.features import Features
from unic_pipe.stages.evaluate.outcome import Outcome, Setting

_ROWS = 8192
"""Samples that are projected at a time."""


@dataclass(frozen=True)
class ZeroShotTask:
    """Images and texts that are to meet in one space."""

    features: Features
    """A teacher's cls features (N, E), or a student's predictions of them."""
    projection: Projection
    texts: ClassTexts
    remarks: tuple[str, ...] = ()


def run(task: ZeroShotTask, setting: Setting) -> Outcome:
    """The scores of one encoder. Fits and draws nothing."""
    scores = zero_shot(task.features, task.projection, task.texts, setting.device)
    return Outcome({0: scores}, {"test_samples": len(task.features.x_ND), "classes": len(task.texts.names)})


def zero_shot(features: Features, projection: Projection, texts: ClassTexts, device: str = "cpu") -> dict[str, float]:
    """`top1`, with more than 5 classes `top5`, and `per_class`: fractions of images whose class is (among) the nearest.

    Args:
        features: a teacher's cls features (N, E), or a student's predictions of them.
        projection: E to F.
        texts: of every class, in the order of the class numbers.
        device: where the products are computed.

    Raises:
        UserError: nothing to score, labels that the texts do not have, spaces that do not fit.
    """
    _check(features, projection, texts)
    x_CF = F.normalize(torch.from_numpy(texts.x_CF).to(device), dim=-1)
    classes, k = len(x_CF), min(5, len(x_CF))
    ranks = []
    for at in range(0, len(features.x_ND), _ROWS):
        z_NF = F.normalize(projection(torch.from_numpy(features.x_ND[at : at + _ROWS]).to(device)), dim=-1)
        ranks.append((z_NF @ x_CF.T).topk(k).indices.cpu().numpy())
    hits_NK = np.concatenate(ranks) == features.labels_N[:, None]
    first_N = hits_NK[:, 0]
    each = [float(first_N[features.labels_N == c].mean()) for c in np.unique(features.labels_N)]
    found = {"top1": float(first_N.mean()), "per_class": float(np.mean(each))}
    return found | ({"top5": float(hits_NK.any(axis=1).mean())} if classes > 5 else {})


def _check(features: Features, projection: Projection, texts: ClassTexts) -> None:
    name = features.name
    check_side(features)
    if features.labels_N.max() >= len(texts.names):
        raise UserError(
            f"Dataset {name} has the class {features.labels_N.max()}, but there are {len(texts.names)} text embeddings.",
            "They have to be those of the dataset's classes, in the order of its class numbers.",
        )
    dims, expected = texts.x_CF.shape[1], len(projection.bias_F)
    if dims != expected:
        raise UserError(
            f"The text embeddings have {dims} dimensions, the teacher's projection leads to {expected}.",
            "Embed the class names with the text encoder of the same CLIP model.",
        )


def in_order_of_texts(features: Features, texts: ClassTexts) -> Features:
    """The features with each class's place among the texts as its label: by name, where texts and classes have the same.

    Raises:
        UserError: only some of the names are the same.
    """
    table = match_texts(features.name, features.classes, texts.names)
    if table is None:
        return features
    return replace(features, labels_N=ClassMap("names", table).in_training(features.labels_N))


def predicted_features(
    student: AdaptedStudent, dataset: Dataset, compute: ComputeDefinition, device: str, stop: Stop
) -> Features:
    """A student's predictions of its teacher's cls features (N, E) of the centre crops of a dataset, float32; after a
    stop only those of the first ones.

    Raises:
        StageError: samples are not those that were indexed.
    """
    labels = dataset.labels_by_row()
    found: list[NDArray[np.float32]] = []
    kept: list[int] = []
    encoder = student.to(device)
    views = (Rendering(CENTER, 0, encoder.definition.image_size, 0),)
    run = EncoderRun(encoder, views, compute, ((0, "cls"),))
    crew = crew_of(usable_cores(), compute.threads, device != "cpu")
    with torch_threads(compute.threads):
        for block in range(dataset.blocks):
            if stop.requested:
                break
            first, count = dataset.block_range(block)
            [part] = features_of_rows(dataset, range(first, first + count), [run], compute.batch, crew)
            found.append(part.features["cls"])
            kept += [first + offset for offset in range(count) if offset not in part.unreadable]
    none: NDArray[np.float32] = np.zeros((0, encoder.definition.cls_dim), np.float32)
    x_NE = np.concatenate([none, *found])
    finite = np.isfinite(x_NE).all(axis=1)
    x_NE, usable = x_NE[finite], np.asarray(kept, np.int64)[finite]
    manifest = dataset.manifest
    return Features(manifest.name, x_NE, labels[usable], manifest.rows - len(usable), manifest.classes)
