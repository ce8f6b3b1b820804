"""Weights & Biases. https://docs.wandb.ai/ref/python"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import pyarrow as pa
from PIL import Image

from unic_pipe.pipeline.loggers.logger import Page, Picture, Run, Value
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.loggers import WandbConfig

FINISH_S = 10.0
"""How long wandb may wait for its uploads at the end; it keeps what is left in its folder."""


class Wandb:
    """One run. What it has already cannot be asked offline."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config

    @staticmethod
    def check(config: WandbConfig) -> None:
        """Raises UserError: online, and nobody is logged in."""
        import wandb

        mode = config.mode or wandb.setup().settings.mode
        if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "loggers.wandb: nobody is logged in to Weights & Biases on this machine.",
                "wandb login, or write files for later: loggers.wandb.mode: offline",
            )

    def begin(self, run: Run) -> None:
        """Open the run, or continue it."""
        import wandb

        folder = os.environ.get("WANDB_DIR") or str(run.workdir / "loggers")
        os.makedirs(folder, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            mode=self._config.mode,
            id=run.id,
            name=run.name,
            job_type=run.kind,
            config=dict(run.settings),
            dir=folder,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", save_code=False, finish_timeout=FINISH_S),
        )

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Hand them to wandb's own process."""
        self._run.log({name: self._converted(value) for name, value in values.items()}, step=step)

    def _converted(self, value: Value) -> object:
        if isinstance(value, pa.Table):
            rows = [list(row.values()) for row in value.to_pylist()]
            return self._wandb.Table(columns=value.column_names, data=rows)
        if isinstance(value, Picture):
            return self._wandb.Image(Image.open(io.BytesIO(value.png)))
        if isinstance(value, Page):
            return self._wandb.Html(value.html, inject=False)
        return value

    def end(self) -> None:
        """Wait for the uploads."""
        self._run.finish()
