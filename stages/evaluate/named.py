"""`evaluate --encoder`: encoders that are probed beside those of the configuration."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import FETCH, WEIGHTS_SUFFIXES
from unic_pipe.pipeline.encoders.registry import parse_choice
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.base import is_name
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError

_GENERIC = ("export", "model", "checkpoint", "pytorch_model")
"""Names of files and folders that say nothing; the folder that they are in has the better name."""


def with_encoders(inventory: Inventory, texts: Sequence[str]) -> Inventory:
    """The inventory with more encoders to evaluate, each `FILE` or `NAME=FILE`.

    FILE is a weights file, an export folder, an official UNIC checkpoint, a registry name or `timm:NAME`.
    Raises UserError: no such file or encoder, or a name that is taken.
    """
    if not texts:
        return inventory
    encoders = dict(inventory.config.evaluate.encoders)
    for text in texts:
        name, choice = _split(text, inventory.folder)
        if name in encoders:
            raise UserError(f"--encoder {text}: {name} is named already.", f"Choose: --encoder OTHER={_target(text)}")
        encoders[name] = EncoderConfig(encoder=choice)
    evaluate = inventory.config.evaluate.model_copy(update={"encoders": encoders})
    config = inventory.config.model_copy(update={"evaluate": evaluate})
    more = Inventory(replace(inventory.workspace, config=config), inventory.rows)
    for name in encoders.keys() - inventory.config.evaluate.encoders.keys():
        try:
            more.encoder(name, encoders[name])
        except UserError as error:
            if error.hint is None or not error.hint.startswith(FETCH):
                raise
            # Only what is configured is downloaded, and this one is not.
            named = shlex.quote(f"evaluate.encoders.{name}.encoder={encoders[name].encoder}")
            rest = error.hint.removeprefix(FETCH)
            raise UserError(error.message, f"{FETCH} --set {named}{rest}") from None
    return more


def _split(text: str, workdir: Path) -> tuple[str, str]:
    """The name and the choice that `--encoder` gives; the name is that of the file or model if there is none."""
    name, equals, target = text.partition("=")
    named = bool(equals) and is_name(name)
    target = target if named else text
    choice = _choice(target, workdir)
    if named:
        return name, choice
    path = Path(choice.partition(":")[2] or choice)
    stem = path.name.removesuffix(path.suffix) if path.suffix in WEIGHTS_SUFFIXES else path.name
    if stem in _GENERIC:
        stem = path.parent.name + ("-" + stem if stem == "export" else "")
    usable = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).lstrip("._+-")
    if not is_name(usable):
        raise UserError(f"--encoder {text}: give it a name.", f"--encoder NAME={text}")
    return usable, choice


def _choice(target: str, workdir: Path) -> str:
    """The encoder of a configuration that a text on the command line means; paths are seen from here."""
    path = Path(target.removeprefix("checkpoint:")).expanduser()
    for place in (path, workdir / path):
        if place.exists():
            return f"checkpoint:{place.absolute()}"
    if not target.startswith(("timm:", "student:", "hf-hub:")) and ("/" in target or path.suffix in WEIGHTS_SUFFIXES):
        raise UserError(f"--encoder {target}: there is no such file or folder.", "Give its path from here.")
    parse_choice(target)
    return target


def _target(text: str) -> str:
    name, equals, target = text.partition("=")
    return target if equals and is_name(name) else text
