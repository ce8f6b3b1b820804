"""What a student starts from (`init`), and how its weights are found. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.workspace.documents import FinishedStudent
from unic_pipe.schemas.config import EncoderConfig, StudentConfig
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.starts import PRETRAINED, TEACHER

_RESAMPLED = ("patch_size", "window_size")
"""Arguments of models to which timm resamples weights, as it does to another image size."""


@dataclass(frozen=True)
class Origin:
    """What a student's definition says about the weights that it starts from."""

    weights: str
    section: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, start: FinishedStudent | ResolvedEncoder) -> Origin:
        """That of a finished student or an encoder."""
        if isinstance(start, FinishedStudent):
            config = start.manifest.definition.config
            return cls(start.export.weights, None, config.mean, config.std)
        found = start.definition
        return cls(found.weights, found.section, found.mean, found.std)


def source_of(student: StudentConfig, teachers: Mapping[str, EncoderConfig], who: str) -> EncoderConfig:
    """The encoder whose weights a student starts from, at the student's image and patch size, so that they are resampled
    once; `who` asks for it.

    Raises:
        UserError: there is no such teacher.
    """
    start = student.start
    assert start is not None
    chosen = start.encoder
    if chosen.startswith(TEACHER):
        teacher = chosen.removeprefix(TEACHER)
        if teacher not in teachers:
            raise UserError(
                f"{who}: no teacher is named {teacher!r}{did_you_mean(teacher, list(teachers))}",
                "Name it under teachers:, or start from `pretrained` or `timm:NAME`.",
            )
        config = teachers[teacher].model_copy(update={"encoder": teachers[teacher].encoder or teacher})
    else:
        named = f"timm:{student.architecture}" if chosen == PRETRAINED else chosen
        config = EncoderConfig(encoder=named, weights=start.weights, prefix=start.prefix)
    if (config.weights or "").startswith("random:"):
        raise UserError(
            f"{who}: init names random weights ({config.weights}).",
            f"Leave out students.{who.rpartition(' ')[2]}.init: without it a student starts from weights of its own seed.",
        )
    sizes = {name: student.model_args[name] for name in _RESAMPLED if name in student.model_args}
    return config.model_copy(update={"image_size": student.image_size, "model_args": {**config.model_args, **sizes}})


def refuse_other_architecture(name: str, student: StudentConfig, parent: str, theirs: StudentConfig) -> None:
    """A student takes up another one's training only with its network.

    Raises:
        UserError: another architecture.
    """
    if (theirs.architecture, theirs.model_args) != (student.architecture, student.model_args):
        raise UserError(
            f"Student {name} ({student.architecture} {student.model_args}) cannot start from {parent} "
            f"({theirs.architecture} {theirs.model_args}): the architectures differ.",
            f"Set students.{name}.architecture and model_args as {parent} has them, or leave out init.",
        )
