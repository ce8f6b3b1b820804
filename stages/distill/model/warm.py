"""Starting from weights (`init: pretrained`, `timm:NAME`, `teacher:NAME` …): the encoder takes what fits, and the rest is
said. The weights are read as those of teachers are, at the student's image size: timm has resampled them before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unic_pipe.pipeline.encoders import ResolvedEncoder, load_encoder
from unic_pipe.pipeline.encoders.models import create
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.stages.distill.model.distiller import Distiller

_SHOWN = 3


def start_from_weights(start: ResolvedEncoder, name: str, model: Distiller, say: Callable[[str], None]) -> None:
    """Give the encoder of a model at its initialisation the weights of another encoder, as far as they fit.

    Raises:
        UserError: most of them do not fit.
        StageError: the file is not the one that was resolved.
    """
    own, theirs = model.student.state(), load_encoder(start).model.state_dict()
    taken, remark = fitting(own, theirs, model.config)
    model.student.load({**own, **taken})
    say(f"{name}: starts from {start.source} ({short(start.definition.weights)}){remark}")


def require_fit(student: Student, start: EncoderDefinition, config: StudentConfig) -> None:
    """Say whether weights fit a student, without reading them.

    Raises:
        UserError: most of them do not.
    """
    with torch.device("meta"):
        theirs = create(start.architecture, start.model_args, start.image_size)
    fitting(student.state(), theirs.state_dict(), config)


def fitting(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], config: StudentConfig
) -> tuple[dict[str, Tensor], str]:
    """The tensors of `theirs` that an encoder has in the same shapes, and a remark on the others of both.

    Raises:
        UserError: they are fewer than half of its own.
    """
    taken = {key: value for key, value in theirs.items() if key in own and value.shape == own[key].shape}
    fresh = [key for key in own if key not in taken]
    unused = [key for key in theirs if key not in taken]
    if 2 * len(taken) < len(own):
        raise UserError(
            f"Student architecture {config.architecture} cannot start from these weights: {len(fresh)} of its {len(own)} "
            f"tensors are not in them or have other shapes ({some(fresh)}).",
            "Set students.NAME.architecture and model_args to those of the weights, or choose another students.NAME.init.",
        )
    remark = f"; {len(fresh)} of its {len(own)} tensors do not come from there: {some(fresh)}" if fresh else ""
    return taken, remark + (f"; {len(unused)} of the weights are left out: {some(unused)}" if unused else "")


def some(keys: Sequence[str]) -> str:
    """The first of these names."""
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
