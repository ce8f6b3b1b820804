"""What dense predictions are worth: mean intersection over union, and root mean squared error.

Shapes: B images, S side of the labels, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.schemas.errors import UserError


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

        Raises:
            UserError: no pixel has a class.
        """
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
