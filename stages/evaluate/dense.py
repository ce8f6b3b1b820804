"""Dense benchmarks: a head is fitted on the training images, every test pixel is scored.

Shapes: B images, S side of the labels, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.samples.classes import listed_names
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.protocols import DenseConfig
from unic_pipe.stages.evaluate.dense_data import DenseData, Scenes
from unic_pipe.stages.evaluate.features import left_out_remarks
from unic_pipe.stages.evaluate.linear_head import DepthHead, SegmentationHead, fit
from unic_pipe.stages.evaluate.outcome import Outcome, Setting


class Confusion:
    """Counts of (true, predicted) pixels over many images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts_CC: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, true_BSS: Tensor, predicted_BSS: Tensor) -> None:
        """Count the pixels whose true class is not negative."""
        known = true_BSS >= 0
        places = true_BSS[known].long() * self.classes + predicted_BSS[known]
        counts = torch.bincount(places, minlength=self.classes**2).cpu().numpy()
        self.counts_CC += counts.reshape(self.classes, self.classes)

    def scores(self) -> dict[str, float]:
        """`miou` over the classes that are there or predicted, and `pixel_accuracy`, fractions.
        Raises UserError: no pixel has a class."""
        hits_C = np.diag(self.counts_CC)
        union_C = self.counts_CC.sum(0) + self.counts_CC.sum(1) - hits_C
        if not union_C.any():
            raise UserError("No pixel of the test set has a class.", "Check classes and first_class of the benchmark.")
        seen = union_C > 0
        return {
            "miou": float((hits_C[seen] / union_C[seen]).mean()),
            "pixel_accuracy": float(hits_C.sum() / self.counts_CC.sum()),
        }


class DepthErrors:
    """Root mean squared errors, image by image, of pixels whose depth is known."""

    def __init__(self) -> None:
        self.rmse: list[float] = []

    def add(self, true_BSS: Tensor, predicted_BSS: Tensor) -> None:
        """Both in metres; 0 in `true_BSS` is unknown. An image without any known pixel does not count."""
        for true_SS, predicted_SS in zip(true_BSS, predicted_BSS, strict=True):
            known = true_SS > 0
            if known.any():
                error = (predicted_SS[known].double() - true_SS[known].double()).square().mean().sqrt()
                self.rmse.append(float(error))

    def scores(self) -> dict[str, float]:
        """`rmse`: the mean over images, in metres. Raises UserError: no image has a known depth."""
        if not self.rmse:
            raise UserError("No pixel of the test set has a known depth.", "Check metres and max_depth.")
        return {"rmse": float(np.mean(self.rmse))}


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
    Raises UserError: label maps are missing, or nothing in them is a class."""
    config, definition = task.config, task.train.cache.definition.encoder
    assert config.classes is not None
    head = SegmentationHead(definition.patch_dim, config.classes, task.train.grid, config.seed)
    _fit(head, task, setting)
    return scored(task, setting, Confusion(config.classes), lambda s: head.logits(s, setting.device).argmax(1))


def depth(task: DenseTask, setting: Setting) -> Outcome | None:
    """A linear head for metres; None after a stop.
    Raises UserError: label maps are missing, or nothing in them is a depth."""
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
