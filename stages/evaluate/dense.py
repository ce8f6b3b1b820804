"""Dense benchmarks: fit or remember on the training images, score every test pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.stopping import Stop
from schemas.config import Scalar
from schemas.protocols import DenseConfig, DenseProbe
from stages.evaluate.dense_data import DenseData, Scenes
from stages.evaluate.dense_scores import Confusion, DepthErrors
from stages.evaluate.in_context import in_context_logits, make_memory
from stages.evaluate.linear_head import DepthHead, SegmentationHead, fit
from stages.evaluate.others import Measured


def measure(
    probe: DenseProbe, config: DenseConfig, train: DenseData, test: DenseData, device: str, stop: Stop
) -> Measured | None:
    """The scores of one protocol on one encoder's tokens; None after a stop.

    Raises:
        UserError: label maps are missing, or nothing in them is a class or a depth.
    """
    definition = train.cache.definition.encoder
    chosen: dict[str, Scalar] = {}
    errors, confusion = DepthErrors(), Confusion(config.classes or 1)
    if probe == "depth":
        depth = DepthHead(definition.patch_dim + definition.cls_dim, train.grid, config.max_depth, config.seed)
        fit(depth, train.batches(config.batch, config.seed), config.steps, config.lr, device, stop)
        images = _score(test, config.batch, device, stop, errors.add, lambda scenes: depth.depth(scenes, device))
    elif probe == "segmentation":
        assert config.classes is not None
        head = SegmentationHead(definition.patch_dim, config.classes, train.grid, config.seed)
        fit(head, train.batches(config.batch, config.seed), config.steps, config.lr, device, stop)
        images = _score(test, config.batch, device, stop, confusion.add, lambda s: head.logits(s, device).argmax(1))
    else:
        assert config.classes is not None
        memory = make_memory(train, config.classes, config.memory, config.seed)
        chosen["memory_patches"] = len(memory.tokens_MD)

        def answer(scenes: Scenes) -> Tensor:
            return in_context_logits(memory, scenes, test.grid, config.k, config.temperature, device).argmax(1)

        images = _score(test, config.batch, device, stop, confusion.add, answer)
    if images is None:
        return None
    chosen |= {"test_samples": images, "pixels": config.pixels}
    metrics = errors.scores() if probe == "depth" else confusion.scores()
    return Measured(metrics, chosen, tuple(_remarks(train, test)))


def _score(
    test: DenseData,
    batch: int,
    device: str,
    stop: Stop,
    add: Callable[[Tensor, Tensor], None],
    predict: Callable[[Scenes], Tensor],
) -> int | None:
    """Add every test image's labels and predictions; the number of images, None after a stop."""
    images = 0
    for scenes in _in_order(test, batch):
        if stop.requested:
            return None
        with torch.inference_mode():
            add(torch.from_numpy(scenes.labels_NSS).to(device), predict(scenes))
        images += len(scenes.cls_ND)
    return images


def _in_order(data: DenseData, batch: int) -> Iterator[Scenes]:
    for number in range(data.blocks):
        scenes = data.block(number)
        for at in range(0, len(scenes.cls_ND), batch):
            yield scenes.rows(np.arange(at, min(at + batch, len(scenes.cls_ND))))


def _remarks(*sides: DenseData) -> Iterator[str]:
    for side in sides:
        if side.left_out:
            yield f"{side.left_out:,} rows of {side.dataset.manifest.name} have no usable features: left out."
