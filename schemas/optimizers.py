"""How a student's weights are moved: `students.NAME.optimizer`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unic_pipe.schemas.base import Model
from unic_pipe.schemas.places import Count, Fraction


class OptimizerConfig(Model):
    """AdamW with linear warm-up and cosine decay."""

    epochs: Count = 200
    """Passes over the student's datasets, by their shares."""
    batch: Count = 512
    """Images of a step, over all processes; a multiple of `streams`."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate per 256 images: the peak is lr * batch / 256."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Where the cosine ends, whatever the batch."""
    warmup_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """Epochs in which the rate rises from 0 to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    """Not applied to biases and other one-dimensional parameters."""
    beta1: Fraction = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: Fraction = 0.99
    """AdamW's decay of the mean of squared gradients."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients with a larger norm are scaled down to it; none by default."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise decay of the learning rate: each layer below the last learns at so much of the rate of the one above
    it, by timm's groups of layers; the ladder learns at the full rate. For students that start from weights."""
    frozen_steps: Annotated[int, Field(ge=0)] = 0
    """First steps in which the ladder alone learns, and the encoder stays as it starts."""
