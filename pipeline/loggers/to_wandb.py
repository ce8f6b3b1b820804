"""Weights & Biases. https://docs.wandb.ai/ref/python"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unic_pipe.pipeline.loggers.logger import Run, Value, converted
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.loggers import WandbConfig

WAIT_S = 15.0
"""How long wandb may wait for its server when a run begins, and for its uploads at the end, also when Python exits. What
is left is in its folder."""
BLOCK = 32 * 1024


class Wandb:
    """One run. What it has already is asked from the server; offline from the files that are there."""

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

    def begin(self, run: Run) -> int | None:
        """Open the run, or continue it; its last step."""
        import wandb

        folder = os.environ.get("WANDB_DIR") or str(run.workdir / "loggers")
        os.makedirs(folder, exist_ok=True)
        files = Path(folder, "wandb").glob(f"offline-run-*-{run.id}/run-{run.id}.wandb")
        found = [step for file in files for step in steps_in(file)]
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
            settings=wandb.Settings(
                silent=True, console="off", save_code=False, init_timeout=WAIT_S, finish_timeout=WAIT_S
            ),
        )
        # The server says the step after its last one.
        return max([*found, self._run.starting_step - 1] if self._run.resumed else found, default=None)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Hand them to wandb's own process."""
        self._run.log({name: converted(self._wandb, value) for name, value in values.items()}, step=step)

    def end(self) -> None:
        """Wait for the uploads."""
        self._run.finish()


def steps_in(file: Path) -> Iterator[int]:
    """The steps in wandb's file of a run. After a head of 7 bytes it is LevelDB's log format: blocks of 32 KiB with pieces
    of records, each behind its checksum, length and kind (1 whole, 2 first, 3 middle, 4 last)."""
    for record in records_in(file.read_bytes()):
        if record.HasField("history"):
            for item in record.history.item:
                if item.key == "_step" or list(item.nested_key) == ["_step"]:
                    yield int(item.value_json)


def records_in(raw: bytes) -> Iterator[Any]:
    """The records of such a file, as far as they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    while place + 7 <= len(raw):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", raw, place + 4)
        end = place + 7 + length
        if kind == 0 or end > len(raw):
            return
        whole, place = whole + raw[place + 7 : end], end
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""
