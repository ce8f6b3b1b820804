"""`evaluate --encoder`: encoders that are probed beside those of the configuration."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import FETCH
from unic_pipe.pipeline.encoders.typed import name_of, typed_choice
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.base import is_name
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UserError


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
    choice = typed_choice(target if named else text, workdir, "--encoder ")
    usable = name if named else name_of(choice)
    if usable is None:
        raise UserError(f"--encoder {text}: give it a name.", f"--encoder NAME={text}")
    return usable, choice


def _target(text: str) -> str:
    name, equals, target = text.partition("=")
    return target if equals and is_name(name) else text
