"""Any encoder as it is typed, with a working folder or without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import FETCH
from unic_pipe.pipeline.encoders.registry import parse_choice
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder, encoder_card, resolve_encoder
from unic_pipe.pipeline.encoders.typed import name_of, typed_choice
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME, load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.chains import named_student
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError


def any_encoder(
    text: str,
    folder: Path,
    image_size: int | None = None,
    architecture: str | None = None,
    fetch: Callable[[str], None] | None = None,
) -> ResolvedEncoder:
    """The encoder that a text means: a registry name, `timm:NAME`, `hf-hub:OWNER/NAME`, `student:NAME`, or the path of a
    weights file or an exported student's folder.

    `folder`: the working folder, if it has a configuration; its weights and students are found. `fetch`: missing
    weights are downloaded, and this is told.

    Raises:
        UserError: no such encoder, no weights, a student that is not there or not finished.
        StageError: a student's export that is not what its training exported, or a download that failed.
    """
    choice = typed_choice(text, folder)
    config = EncoderConfig(encoder=choice, image_size=image_size, architecture=architecture)
    name = name_of(choice) or "encoder"
    inventory = Inventory(load_workspace(folder)) if (folder / CONFIG_NAME).is_file() else None
    student = named_student(choice)
    if student is not None:
        if inventory is None:
            raise UserError(
                f"{text}: there is no working folder here, so no student has a name.",
                f"Type it where {CONFIG_NAME} is; or give the student's folder (students/{student}/export).",
            )
        return inventory.student_encoder(inventory.finished(student, text), name, config)
    weights_dir = inventory.workspace.weights_dir if inventory is not None else folder / "weights"
    workdir = inventory.folder if inventory is not None else None
    if fetch is not None:
        _fetch(choice, weights_dir, fetch)
    try:
        return resolve_encoder(name, config, weights_dir, workdir)
    except UserError as error:
        hint = (error.hint or "").replace(f"{FETCH} downloads it", "Add --fetch, which downloads it")
        hint = hint.replace(
            "a line such as `architecture: vit_base_patch16_224`", "--architecture vit_base_patch16_224"
        )
        raise UserError(error.message, hint.replace(", and `model_args` if it has any", "") or None) from None


def _fetch(choice: str, weights_dir: Path, say: Callable[[str], None]) -> None:
    from unic_pipe.pipeline.encoders.fetch import fetch_repository, fetch_weights

    kind, target = parse_choice(choice)
    if kind == "hub":
        fetch_repository(target, weights_dir, say)
    elif kind in ("registry", "timm"):
        fetch_weights(
            encoder_card("registry" if kind == "registry" else "timm", target, weights_dir, None), weights_dir, say
        )
