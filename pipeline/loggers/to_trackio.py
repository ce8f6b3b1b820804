"""trackio. https://huggingface.co/docs/trackio"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from threading import Lock

from unic_pipe.pipeline.loggers.logger import Run, Value, converted
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.loggers import TrackioConfig

_ONE_AT_A_TIME = Lock()


@contextmanager
def _greeting_on_stderr() -> Iterator[None]:
    """It prints on stdout, which is for what machines read."""
    with _ONE_AT_A_TIME, redirect_stdout(sys.stderr):
        yield


class Trackio:
    """One run, which has our id as its name."""

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config

    @staticmethod
    def check(config: TrackioConfig) -> None:
        """Raises UserError: a Space is wanted, and nobody is logged in."""
        from huggingface_hub import get_token

        if config.space is not None and get_token() is None:
            raise UserError(
                "loggers.trackio: nobody is logged in to Hugging Face on this machine.",
                "hf auth login, or keep the runs here: leave loggers.trackio.space out.",
            )

    def begin(self, run: Run) -> int | None:
        """Open the run, or continue it; its last step."""
        import trackio

        self._trackio = trackio
        with _greeting_on_stderr():
            self._run = trackio.init(
                self._config.project,
                name=run.id,
                group=run.kind,
                space_id=self._config.space,
                config={name: value for name, value in run.settings.items() if not name.startswith("_")},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        step: int = self._run._next_step  # after the last one; there is no public name for it
        return step - 1 if step else None

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Hand them to trackio's own thread."""
        self._run.log({name: converted(self._trackio, value) for name, value in values.items()}, step=step)

    def end(self) -> None:
        """Wait until its thread has written everything."""
        with _greeting_on_stderr():
            self._run.finish()
