"""Student, ladder and loss as one module, and the optimizer's step.

Shapes: B images, S image side in pixels, T teachers, E teacher dimension, P patch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pipeline.views.render import normalize
from schemas.config import StudentConfig, TokenType
from schemas.errors import UserError
from schemas.students import TeacherInput
from stages.distill.ladder import Ladder, rungs
from stages.distill.loader import Batch
from stages.distill.loss import TeacherLosses, keep_teachers, teacher_losses, total_loss
from stages.distill.rows import trained_tokens
from stages.distill.student import build_student
from stages.distill.targets import GridResampler


class Distiller(nn.Module):
    """The student with its ladder, and the loss of a batch against all teachers."""

    def __init__(self, config: StudentConfig, teachers: tuple[TeacherInput, ...], device: torch.device) -> None:
        """Build both at their seeded initialisation and move them to `device`.

        Raises:
            UserError: the configuration does not make a vision transformer or a ladder.
        """
        super().__init__()
        self.config, self.device = config, device
        self.student = build_student(config)
        self.ladder = _build_ladder(config, teachers, self.student.depth, self.student.width)
        self.resample = {t.name: GridResampler(t.grid, self.student.grid, device) for t in teachers}
        self.to(device)

    def forward(self, batch: Batch, training: bool = True) -> tuple[TeacherLosses, Tensor, Tensor]:
        """Losses per image and teacher, which teachers each image kept (B, T), and the scalar to minimise.

        Without `training` no branch and no teacher is dropped.
        """
        config, device = self.config, self.device
        drop_path_BU = batch.drop_path_BU.to(device, non_blocking=True) if training else None
        drop_teacher_BT = batch.drop_teacher_BT.to(device, non_blocking=True)
        x_B3SS = normalize(batch.images_B3SS.to(device, non_blocking=True), config.mean, config.std)
        with self._autocast():
            outputs = self.student(x_B3SS, self.ladder.rungs.blocks, drop_path_BU)
            predictions = self.ladder(*outputs)
        losses = teacher_losses(predictions, self._targets(batch), config.loss.cosine, config.loss.smooth_l1)
        keep_BT = keep_teachers(losses.loss_BT, drop_teacher_BT, config.loss.drop_probability if training else 0.0)
        return losses, keep_BT, total_loss(losses.loss_BT, keep_BT)

    def _targets(self, batch: Batch) -> Mapping[TokenType, Mapping[str, Tensor]]:
        targets: dict[TokenType, dict[str, Tensor]] = {token: {} for token in trained_tokens(self.config)}
        for (teacher, token), raw in batch.targets.items():
            decoded = raw.to(self.device).decode()
            targets[token][teacher] = self.resample[teacher](decoded) if token == "patch" else decoded
        return targets

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16")


def _build_ladder(config: StudentConfig, teachers: tuple[TeacherInput, ...], depth: int, width: int) -> Ladder:
    sizes: dict[TokenType, dict[str, int]] = {
        "cls": {t.name: t.cls_dim for t in teachers},
        "patch": {t.name: t.patch_dim for t in teachers},
    }
    if config.loss.cosine == config.loss.smooth_l1 == 0:
        raise UserError("loss.cosine and loss.smooth_l1 are both 0: there is nothing to minimise.")
    with torch.random.fork_rng(devices=[]):
        # Not the student's own numbers again; any fixed function of the seed will do.
        torch.manual_seed(config.seed + 0x1ADDE5)
        return Ladder(rungs(config.ladder, depth), width, {token: sizes[token] for token in trained_tokens(config)})
