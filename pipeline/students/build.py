"""From a student's settings to its network: a timm model, and what its tokens and stages make of it."""

from __future__ import annotations

from inspect import signature
from typing import Any

import timm
import torch

from unic_pipe.pipeline.encoders.readouts import UnreadableError
from unic_pipe.pipeline.students.staged import StagedStudent
from unic_pipe.pipeline.students.student import Student
from unic_pipe.pipeline.students.vits import PooledViTStudent, ViTStudent
from unic_pipe.schemas.arguments import require_arguments
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError, did_you_mean

OPTIONAL = ("img_size", "drop_path_rate")
"""Arguments that a constructor gets only if it takes them."""


class MisfitError(UserError):
    """A network that timm does not make of these settings; at another image size it may."""


def build_student(config: StudentConfig) -> Student:
    """The student at its seeded random initialisation, on the CPU, in training mode; global random state is kept.

    Raises:
        UserError: no such architecture, one that cannot be a student, or settings that it does not take.
    """
    require_arguments(config.architecture, config.model_args)
    _refuse_random_layers(config)
    if not timm.is_model(config.architecture):
        near = did_you_mean(config.architecture, timm.list_models())
        raise UserError(
            f"Student architecture {config.architecture}: timm has no such model{near if near.startswith(';') else '.'}",
            "Correct students.NAME.architecture, for instance to vit_small_patch16_224.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            encoder, sized = _create(config)
            student = student_of(encoder, config.image_size)
        except TypeError as error:
            raise UserError(
                f"Student architecture {config.architecture} does not take these arguments: {error}.",
                "Check students.NAME.architecture and model_args.",
            ) from None
        except UnreadableError as error:
            raise UserError(
                f"Student architecture {config.architecture}: {error.message}",
                "Choose another one for students.NAME.architecture.",
            ) from None
        except Exception as error:  # constructors say what they do not take in every way that Python has
            raise MisfitError(
                f"Student architecture {config.architecture} cannot be built: {first_line(error)}.",
                "Check students.NAME.architecture, image_size and model_args.",
            ) from None
    student.model_args = {**config.model_args, **sized}
    return student


def first_line(error: BaseException) -> str:
    """What an error of PyTorch or timm says first."""
    return str(error).partition("\n")[0].rstrip(".")


def _create(config: StudentConfig) -> tuple[Any, dict[str, int]]:
    """The network, and the image size where its constructor had to be told."""
    size = {"img_size": config.image_size}
    arguments: dict[str, Any] = {**size, "drop_path_rate": config.drop_path, **config.model_args}
    while True:
        try:
            encoder = timm.create_model(config.architecture, pretrained=False, num_classes=0, **arguments)
            return encoder, {name: value for name, value in size.items() if name in arguments}
        except TypeError as error:
            refused = next((name for name in OPTIONAL if name in arguments and f"'{name}'" in str(error)), None)
            if refused is None or refused in config.model_args:
                raise
            del arguments[refused]


def student_of(encoder: Any, image_size: int) -> Student:
    """A timm model as the kind of student that it is; some kinds try it on an image of `image_size` pixels."""
    if not _has(encoder, "blocks", "forward_intermediates", "num_prefix_tokens"):
        return StagedStudent(encoder, image_size)
    # CaiT, ConViT and XCiT have a class token that their blocks do not give.
    given = "return_prefix_tokens" in signature(encoder.forward_intermediates).parameters
    if given and _has(encoder, "cls_token", "patch_embed"):
        return ViTStudent(encoder)
    return PooledViTStudent(encoder, image_size)


def _has(encoder: Any, *names: str) -> bool:
    return all(getattr(encoder, name, None) is not None for name in names)


def _refuse_random_layers(config: StudentConfig) -> None:
    if "drop_path_rate" in config.model_args:
        raise UserError("model_args.drop_path_rate: use students.NAME.drop_path instead.")
    rates = [key for key, value in config.model_args.items() if key.endswith("drop_rate") and value]
    if rates:
        raise UserError(
            f"model_args.{rates[0]}: dropout draws from global random state, which a resumed run cannot repeat.",
            "Leave it out; students.NAME.drop_path regularises and resumes exactly.",
        )
