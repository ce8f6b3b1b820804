"""A finished student for other programs: `from unic_pipe import load_student`."""

from __future__ import annotations

from pathlib import Path

import torch

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.loading import load_encoder
from unic_pipe.pipeline.students.adaptors import AdaptedStudent, read_adaptors
from unic_pipe.pipeline.students.build import student_of
from unic_pipe.schemas.config import TokenType


class StudentEncoder(Encoder):
    """An exported student: called with normalised images (B, 3, S, S), it gives its own `cls` (B, D) and `patch`
    (B, P, D), float32, as its export is read."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        """`encoder`: the export in `folder`, loaded."""
        super().__init__(encoder.model, encoder.definition)
        self.folder = folder

    def adapt(self, teacher: str, tokens: tuple[TokenType, ...] = ("cls", "patch")) -> AdaptedStudent:
        """The student with its ladder to a teacher: normalised images (B, 3, S, S) in, that teacher's `cls` (B, E) and
        `patch` (B, P, E; on the student's grid) out, float32, in the teacher's own units.

        Of `tokens` those are given that the student was trained on. The network is shared with this encoder.

        Raises:
            UserError: no such teacher, or an export without adaptors, as earlier versions wrote it.
            StageError: the adaptors are not those that were exported.
        """
        student = student_of(self.model, self.definition.image_size)
        return AdaptedStudent(student, self.definition, read_adaptors(self.folder), teacher, tokens).to(self.device)


def load_student(folder: Path | str, device: str | torch.device = "cpu") -> StudentEncoder:
    """A finished student in evaluation mode on `device`.

    `folder` is `students/NAME`, its `export/`, or an official UNIC checkpoint that was imported (`encoders/NAME`).

    Raises:
        UserError: no such folder, or not an exported student.
    """
    place = Path(folder)
    place = place / "export" if (place / "export").is_dir() else place
    return StudentEncoder(load_encoder(f"checkpoint:{place}"), place).to(device)
