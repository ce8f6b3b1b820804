"""A tiny student, and a batch of made-up images and targets of two teachers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.students import TeacherInput
from unic_pipe.stages.distill.data.batches import Batch, BatchPlan
from unic_pipe.stages.distill.data.targets import Affine, RawTargets
from unic_pipe.stages.distill.model.distiller import Distiller

TINY: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "image_size": 16,
    "dtype": "float32",
    "drop_path": 0.0,
}


def made_up(config: StudentConfig, rows_B: Any = None) -> tuple[Distiller, Batch]:
    """A model with teachers a (8, 8 dimensions) and b (6, 6) on other grids, and a batch of eight images."""
    sizes = {"a": ((3, 3), 8), "b": ((1, 1), 6)}
    teachers = tuple(
        TeacherInput(name=n, features="0" * 64, grid=grid, cls_dim=d, patch_dim=d) for n, (grid, d) in sizes.items()
    )
    model, random = Distiller(config, teachers, torch.device("cpu")), torch.Generator().manual_seed(0)
    rows_B = np.arange(8) if rows_B is None else rows_B
    targets = {}
    for (teacher, token), standard in model.standards.items():
        grid, d = sizes[teacher]
        shape = (8, d) if token == "cls" else (8, grid[0] * grid[1], d)
        plain = {standard.name: Affine(torch.ones(1, d), torch.zeros(1, d))}
        targets[teacher, token] = RawTargets(torch.randn(shape, generator=random), torch.zeros(8).long(), plain)
    images = {16: torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=random)}
    draws = torch.rand(8, 2, generator=random), torch.rand(8, len(model.student.drop_paths), generator=random)
    shown = torch.arange(8) % 3, torch.rand(8, 17, generator=random)
    return model, Batch(BatchPlan(rows_B, 0, 0), images, targets, *draws, *shown)
