"""Which loggers are wanted, and whether they can work: looked up before anything long begins."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import partial
from importlib.metadata import entry_points

from unic_pipe.pipeline.loggers.logger import Callback, Maker, Tell
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.loggers import LoggersConfig

GROUP = "unic_pipe.loggers"
"""Of the entry points by which installed packages offer loggers."""
LOGGERS: Mapping[str, str] = {"wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
"""Class in `to_NAME.py` by the name of the package, of its extra and of its settings."""


def wanted_loggers(config: LoggersConfig, tell: Tell | None = None) -> dict[str, Maker]:
    """What makes a logger for a run, by name. Only the packages of loggers that are asked for are imported.

    `tell`: a function that is told as well.

    Raises:
        UserError: a package is not installed, somebody is not logged in, or no package offers a logger of that name.
    """
    found: dict[str, Maker] = {}
    for name, kind in LOGGERS.items():
        settings = getattr(config, name)
        if settings is None:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as wandb's own files, is no package
            raise UserError(
                f"loggers.{name}: the package {name} is not installed.",
                f'pip install "unic-pipe[{name}]", or leave loggers.{name} out.',
            )
        logger = getattr(importlib.import_module(f"unic_pipe.pipeline.loggers.to_{name}"), kind)
        logger.check(settings)
        found[name] = partial(logger, settings)
    found |= {name: _installed(name) for name in config.installed}
    return found if tell is None else {**found, "callback": partial(Callback, tell)}


def _installed(name: str) -> Maker:
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in offered:
        raise UserError(
            f"loggers.installed: no installed package offers a logger {name!r}{did_you_mean(name, list(offered))}",
            f"Install the package that does; its entry point is of the group {GROUP}.",
        )
    try:
        maker: Maker = offered[name].load()
    except Exception as error:  # it is somebody else's code
        raise UserError(
            f"loggers.installed: {name} ({offered[name].value}) cannot be loaded: {error}",
            f"Mend or upgrade that package, or leave {name} out.",
        ) from error
    return maker
