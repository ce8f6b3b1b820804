"""Students built without weights (PyTorch's meta device), so that what cannot be trained is found before a teacher runs.

Shapes: B images, S image side in pixels, U residual branches with drop path.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unic_pipe.pipeline.encoders.measure import patch_size
from unic_pipe.pipeline.students.build import MisfitError, build_student, first_line
from unic_pipe.pipeline.students.heads.heads import inputs
from unic_pipe.pipeline.students.student import Student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.trainable import keep_verdicts, shape_digest, unjudged, weights_before
from unic_pipe.schemas.config import StudentConfig, TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.students import StudentShape, StudentVerdict
from unic_pipe.stages.distill.model.distiller import build_ladder
from unic_pipe.stages.distill.model.warm import require_fit
from unic_pipe.stages.distill.parallel.batch_norm import batch_norms

IMAGES = 2
STEPS, TRIES = (8, 14, 32), 6
"""What image sizes are multiples of, and how many are tried in each direction where one does not fit."""


def judge_students(inventory: Inventory) -> dict[str, StudentVerdict]:
    """Build the students that nobody has built yet with the programs that are installed; what was found is kept, too."""
    found = {}
    for name in unjudged(inventory):
        student, start = inventory.config.students[name], weights_before(inventory, name)
        found[shape_digest(student, start)] = judge(student, start)
    if found:
        keep_verdicts(inventory.folder, found)
    return found


def judge(config: StudentConfig, start: EncoderDefinition | None = None) -> StudentVerdict:
    """What building a student and its ladder, and showing it images, says; and whether weights to start from fit."""
    try:
        student = build(config)
        if start is not None:
            require_fit(student, start, config)
    except UserError as error:
        return StudentVerdict(problem=error.message, hint=error.hint)
    return StudentVerdict(batch_norm=config.batch_norm != "frozen" and bool(batch_norms(student)))


def shape_of(architecture: str, image_size: int | None) -> StudentShape:
    """What a student of this architecture looks like, at an image size or its own.

    Raises:
        UserError: it cannot be built.
    """
    size = image_size or _own_size(architecture) or StudentConfig().image_size
    student = build(StudentConfig(architecture=architecture, image_size=size))
    widths = student.widths["patch"]
    return StudentShape(
        architecture=architecture,
        image_size=size,
        patch=size // student.grid[0],
        # Where stages grow, projectors as wide as the last would be many times the network.
        width=widths[-1] if len(set(widths)) == 1 else max(1, widths[-1] // 4),
        batch_norm=bool(batch_norms(student)),
    )


def build(config: StudentConfig) -> Student:
    """Build a student and its ladder without memory, and pass images through both; the student, on the meta device.

    Raises:
        UserError: it cannot be built, does not take images of this size, has nothing to learn, or draws random numbers
            that nobody gives it.
    """
    try:
        student, drawn = _built(config)
    except MisfitError as error:
        sizes = [str(size) for size in _fitting_sizes(config)]
        hint = f"Set students.NAME.image_size to {' or '.join(sizes)}." if sizes else error.hint
        raise UserError(error.message, hint) from None
    if drawn:
        raise _unrepeatable(config, student)
    for size in config.image_sizes or ():
        _require_size(config, size)
    return student


def _require_size(config: StudentConfig, size: int) -> None:
    """Refuse a network that is made for one image size where it is trained on several.

    Raises:
        UserError: it does not take this one.
    """
    try:
        _built(config, size)
    except MisfitError as error:
        who = f"Student architecture {config.architecture} "
        message = f"{who}was made for {config.image_size} pixels, and image_sizes asks for {size}: it"
        hint = "Leave out students.NAME.image_sizes, or choose an architecture that takes images of any size."
        dynamic = config.model_copy(update={"model_args": {**config.model_args, "dynamic_img_size": True}})
        with suppress(UserError):
            _built(dynamic, size)
            hint = "Set students.NAME.model_args.dynamic_img_size: true."
        raise UserError(f"{message} {error.message.removeprefix(who)}", hint) from None


def _built(config: StudentConfig, size: int | None = None) -> tuple[Student, bool]:
    """The student, and whether a step with given draws of its drop path draws random numbers all the same.

    `size`: of the images that it is shown, its own by default.
    """
    size = size or config.image_size
    with torch.device("meta"), torch.no_grad():
        student = build_student(config)
        # Whatever a teacher gives, its projector ends with a linear layer.
        sizes: dict[TokenType, dict[str, int]] = {token: {"teacher": 1} for token in config.loss.trained}
        ladder = build_ladder(config, sizes, student)
        try:
            x_B3SS = torch.empty(IMAGES, 3, size, size)
            with Draws() as draws:
                outputs = student(x_B3SS, ladder.rungs.blocks, torch.empty(IMAGES, len(student.drop_paths)))
                ladder(*inputs(student, ladder, outputs))
        except Exception as error:  # what networks say of images that they do not take is of many kinds
            raise MisfitError(
                f"Student architecture {config.architecture} does not take RGB images of {size} pixels: "
                f"{first_line(error)}.",
                "Check students.NAME.image_size and model_args.",
            ) from None
        patch = patch_size(student.encoder)
        if size % patch:
            raise MisfitError(
                f"Student architecture {config.architecture} would cut off what is left of {size} pixels "
                f"after patches of {patch}."
            )
    return student, draws.seen


def _unrepeatable(config: StudentConfig, student: Student) -> UserError:
    """The error of a network that draws; where only its drop path does, it can be trained without."""
    message = f"Student architecture {config.architecture} draws random numbers that a resumed training cannot repeat"
    if config.drop_path and not _built(config.model_copy(update={"drop_path": 0.0}))[1]:
        return UserError(f"{message}: its drop path is its own.", "Set students.NAME.drop_path: 0.")
    with suppress(UserError):
        if not _built(config.model_copy(update={"model_args": {**config.model_args, "drop_rate": 0.0}}))[1]:
            return UserError(f"{message}: it has dropout.", "Set students.NAME.model_args.drop_rate: 0.")
    named = student.encoder.named_modules()
    layers = [name for name, module in named if isinstance(module, nn.Dropout) and module.p > 0]
    where = f": it has dropout ({layers[0]})" if layers else ""
    return UserError(f"{message}{where}.", "Choose another one for students.NAME.architecture.")


def _fitting_sizes(config: StudentConfig) -> list[int]:
    """The nearest smaller and the nearest larger image size that a network takes, of those that are usual."""
    wanted, own = config.image_size, _own_size(config.architecture)
    usual = {n * step for step in STEPS for n in range(max(1, wanted // step - 1), wanted // step + 3)}
    near = sorted({*usual, own or wanted} - {wanted}, key=lambda size: abs(size - wanted))
    sides = ([size for size in near if size < wanted], [size for size in near if size > wanted])
    return [fit for side in sides if (fit := next((s for s in side[:TRIES] if _fits(config, s)), None)) is not None]


def _fits(config: StudentConfig, size: int) -> bool:
    try:
        _built(config.model_copy(update={"image_size": size}))
    except UserError:
        return False
    return True


def _own_size(architecture: str) -> int | None:
    """The image size that timm knows of an architecture."""
    known = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    return None if known is None else int(known.input_size[-1])


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that draw from PyTorch's random state, on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        del types
        # Fused attention is marked, although with dropout another operator runs, which draws.
        draws = torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in str(func)
        self.seen = self.seen or draws
        return func(*args, **(kwargs or {}))
