"""Dense benchmarks: a head is fitted on the training images, every test pixel is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unic_pipe.pipeline.samples.classes import listed_names
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


class Tally(Protocol):
    """Collects predictions, and says what they are worth."""

    def add(self, true_BSS: Tensor, predicted_BSS: Tensor) -> None:
        """Labels and predictions of some images."""

    def scores(self) -> dict[str, float]:
        """Metrics over all images."""


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
    tally: Tally,
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
    remarks = _unseen(task, tally) if isinstance(tally, Confusion) else ()
    return Outcome({0: tally.scores()}, (chosen or {}) | sizes, remarks=remarks)


def _unseen(task: DenseTask, tally: Confusion) -> tuple[str, ...]:
    """Classes of test pixels that no label map showed in training, by their values in the maps; they stay in the score."""
    pixels_C = tally.counts_CC.sum(axis=1)
    unseen = [c for c in np.flatnonzero(pixels_C).tolist() if c not in task.train.classes()]
    if not unseen:
        return ()
    share = 100 * pixels_C[unseen].sum() / pixels_C.sum()
    values = listed_names([str(c + task.config.first_class) for c in unseen])
    which = "1 class" if len(unseen) == 1 else f"{len(unseen)} classes"
    said = f"{share:.1f} % of the test pixels belong to {which} that the training label maps never show ({values})"
    return (f"{said}: counted as wrong.",)


def _fit(head: SegmentationHead | DepthHead, task: DenseTask, setting: Setting) -> None:
    config = task.config
    batches = task.train.batches(config.batch, config.seed)
    fit(head, batches, config.steps, config.lr, setting.device, setting.stop)


def _in_order(data: DenseData, batch: int) -> Iterator[Scenes]:
    for number in range(data.blocks):
        scenes = data.block(number)
        for at in range(0, len(scenes.cls_ND), batch):
            yield scenes.rows(np.arange(at, min(at + batch, len(scenes.cls_ND))))
