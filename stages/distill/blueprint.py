"""Students built without weights (PyTorch's meta device), so that what cannot be trained is found before a teacher runs.

Shapes: B images, S image side in pixels, U residual branches with drop path.
"""

from __future__ import annotations

import timm
import torch

from unic_pipe.pipeline.students.build import build_student
from unic_pipe.pipeline.students.student import Student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.trainable import keep_verdicts, shape_digest, unjudged
from unic_pipe.schemas.config import StudentConfig, TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.students import StudentShape, StudentVerdict
from unic_pipe.stages.distill.data.rows import trained_tokens
from unic_pipe.stages.distill.model.distiller import build_ladder

IMAGES = 2


def judge_students(inventory: Inventory) -> dict[str, StudentVerdict]:
    """Build the students that nobody has built yet with the programs that are installed; what was found is kept, too."""
    students = inventory.config.students
    found = {shape_digest(students[name]): judge(students[name]) for name in unjudged(inventory)}
    if found:
        keep_verdicts(inventory.folder, found)
    return found


def judge(config: StudentConfig) -> StudentVerdict:
    """What building a student and its ladder, and showing it images, says."""
    try:
        build(config)
    except UserError as error:
        return StudentVerdict(problem=error.message, hint=error.hint)
    return StudentVerdict()


def shape_of(architecture: str, image_size: int | None) -> StudentShape:
    """What a student of this architecture looks like, at an image size or its own.

    Raises:
        UserError: it cannot be built.
    """
    known = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    size = image_size or (known.input_size[-1] if known is not None else StudentConfig().image_size)
    student = build(StudentConfig(architecture=architecture, image_size=size))
    return StudentShape(
        architecture=architecture, image_size=size, patch=size // student.grid[0], width=student.widths["cls"][-1]
    )


def build(config: StudentConfig) -> Student:
    """Build a student and its ladder without memory, and pass images through both; the student, on the meta device.

    Raises:
        UserError: it cannot be built, does not take images of this size, or has nothing to learn.
    """
    with torch.device("meta"), torch.no_grad():
        student = build_student(config)
        # Whatever a teacher gives, its projector is a linear layer.
        sizes: dict[TokenType, dict[str, int]] = {token: {"teacher": 1} for token in trained_tokens(config)}
        ladder = build_ladder(config, sizes, student)
        try:
            x_B3SS = torch.empty(IMAGES, 3, config.image_size, config.image_size)
            ladder(*student(x_B3SS, ladder.rungs.blocks, torch.empty(IMAGES, len(student.drop_paths))))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(
                f"Student architecture {config.architecture} does not take RGB images of {config.image_size} pixels: "
                f"{reason}.",
                "Check students.NAME.image_size and model_args.",
            ) from None
    return student
