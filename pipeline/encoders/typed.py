"""Encoders as people type them: a name, or the path of a weights file or an exported student's folder."""

import re
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import WEIGHTS_SUFFIXES
from unic_pipe.pipeline.encoders.registry import REGISTRY, parse_choice
from unic_pipe.schemas.base import is_name
from unic_pipe.schemas.errors import UserError

_GENERIC = ("export", "model", "checkpoint", "pytorch_model")
"""Names of files and folders that say nothing; the folder that they are in has the better name."""


def typed_choice(target: str, workdir: Path, option: str = "") -> str:
    """The encoder of a configuration that a text means: `checkpoint:` for what is a file or folder, seen from here or
    from the working folder. `option` stands before the text in messages.
    Raises UserError: no such file or encoder."""
    path = Path(target.removeprefix("checkpoint:")).expanduser()
    for place in (path, workdir / path):
        if place.exists():
            return f"checkpoint:{place.absolute()}"
    if not target.startswith(("timm:", "student:", "hf-hub:")) and ("/" in target or path.suffix in WEIGHTS_SUFFIXES):
        raise UserError(f"{option}{target}: there is no such file or folder.", "Give its path from here.")
    if is_name(target) and (workdir / "students" / target).exists() and target not in REGISTRY:
        raise UserError(f"{option}No encoder is named {target!r}, but a student is.", f"Type student:{target}")
    parse_choice(target)
    return target


def name_of(choice: str) -> str | None:
    """A name for an encoder that has none: that of its file, folder or model; None where that makes no name."""
    path = Path(choice.partition(":")[2] or choice)
    stem = path.name.removesuffix(path.suffix) if path.suffix in WEIGHTS_SUFFIXES else path.name
    if stem in _GENERIC:
        stem = path.parent.name + ("-" + stem if stem == "export" else "")
    usable = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).lstrip("._+-")
    return usable if is_name(usable) else None
