"""Learning rates and parameter groups.

Linear warm-up from 0 to the peak, then a cosine to the final rate, as DINO's and UNIC's training code computes them;
AdamW with decay on matrices only. Where an encoder starts from weights, layers further down may learn at lower rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_layer_decay
from torch import nn

from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.config import OptimizerConfig

LR_IMAGES = 256
"""The configured learning rate is per this many images."""


def learning_rates(
    base: float, final: float, epochs: int, steps_per_epoch: int, warmup_epochs: int
) -> NDArray[np.float64]:
    """Learning rate of every step, (epochs * steps_per_epoch,) float64.

    Warm-up takes `min(warmup_epochs, epochs)` epochs; afterwards
    final + (base - final) / 2 * (1 + cos(pi * i / n)) for i = 0 … n - 1.
    """
    total = epochs * steps_per_epoch
    warmup = min(warmup_epochs * steps_per_epoch, total)
    rest = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / max(len(rest), 1)))
    return np.concatenate([np.linspace(0.0, base, warmup), cosine])


def peak_rate(config: OptimizerConfig) -> float:
    """The highest learning rate of a student: lr * batch / 256."""
    return config.lr * config.batch / LR_IMAGES


def configured_rates(config: OptimizerConfig, steps_per_epoch: int) -> NDArray[np.float64]:
    """Learning rate of every step of a student."""
    return learning_rates(peak_rate(config), config.min_lr, config.epochs, steps_per_epoch, config.warmup_epochs)


def make_optimizer(student: Student, ladder: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (eps 1e-8) over all trainable parameters, in two groups: decayed matrices, and everything else.

    Biases (by name, whatever their shape) and one-dimensional parameters are not decayed. With `layer_decay`, every layer
    of the encoder has such groups of its own, with its share of the rate as `lr_scale` (timm's
    `param_groups_layer_decay`, after BEiT, arXiv 2106.08254).
    """
    if config.layer_decay is None:
        groups = _groups((student, ladder), config)
    else:
        layers = param_groups_layer_decay(student.encoder, config.weight_decay, layer_decay=config.layer_decay)
        groups = [*layers, *_groups((ladder,), config)]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a step's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def _groups(modules: Iterable[nn.Module], config: OptimizerConfig) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                is_plain = parameter.ndim <= 1 or name.rpartition(".")[2].endswith("bias")
                (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
