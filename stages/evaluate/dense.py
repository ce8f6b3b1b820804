"""Dense benchmarks: a head is fitted on the training images, every test pixel is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.protocols import DenseConfig
from unic_pipe.stages.evaluate.dense_data import DenseData, Scenes
from unic_pipe.stages.evaluate.dense_scores import Confusion, DepthErrors
from unic_pipe.stages.evaluate.features import left_out_remarks
from unic_pipe.stages.evaluate.linear_head import DepthHead, SegmentationHead, fit
from unic_pipe.stages.evaluate.outcome import Outcome, Setting


@dataclass(frozen=True)
class DenseTask:
    """A benchmark's patch tokens and label maps for one encoder."""

    config: DenseConfig
    train: DenseData
    test: DenseData

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the scores has to know, as far as blocks were read."""
        return tuple(
            remark
            for side in (self.train, self.test)
            for remark in left_out_remarks(side.dataset.manifest.name, side.left_out)
        )


def segmentation(task: DenseTask, setting: Setting) -> Outcome | None:
    """A linear head for classes; None after a stop.

    Raises:
        UserError: label maps are missing, or nothing in them is a class.
    """
    config, definition = task.config, task.train.cache.definition.encoder
    assert config.classes is not None
    head = SegmentationHead(definition.patch_dim, config.classes, task.train.grid, config.seed)
    _fit(head, task, setting)
    return scored(task, setting, Confusion(config.classes), lambda s: head.logits(s, setting.device).argmax(1))


def depth(task: DenseTask, setting: Setting) -> Outcome | None:
    """A linear head for metres; None after a stop.

    Raises:
        UserError: label maps are missing, or nothing in them is a depth.
    """
    config, definition = task.config, task.train.cache.definition.encoder
    head = DepthHead(definition.patch_dim + definition.cls_dim, task.train.grid, config.max_depth, config.seed)
    _fit(head, task, setting)
    return scored(task, setting, DepthErrors(), lambda s: head.depth(s, setting.device))


def scored(
    task: DenseTask,
    setting: Setting,
    tally: Confusion | DepthErrors,
    predict: Callable[[Scenes], Tensor],
    chosen: dict[str, Scalar] | None = None,
) -> Outcome | None:
    """Tally every test image's labels and predictions; None after a stop."""
    images = 0
    for scenes in _in_order(task.test, task.config.batch):
        if setting.stop.requested:
            return None
        with torch.inference_mode():
            tally.add(torch.from_numpy(scenes.labels_NSS).to(setting.device), predict(scenes))
        images += len(scenes.cls_ND)
    sizes: dict[str, Scalar] = {"test_samples": images, "pixels": task.config.pixels}
    return Outcome({0: tally.scores()}, (chosen or {}) | sizes)


def _fit(head: SegmentationHead | DepthHead, task: DenseTask, setting: Setting) -> None:
    config = task.config
    batches = task.train.batches(config.batch, config.seed)
    fit(head, batches, config.steps, config.lr, setting.device, setting.stop)


def _in_order(data: DenseData, batch: int) -> Iterator[Scenes]:
    for number in range(data.blocks):
        scenes = data.block(number)
        for at in range(0, len(scenes.cls_ND), batch):
            yield scenes.rows(np.arange(at, min(at + batch, len(scenes.cls_ND))))
