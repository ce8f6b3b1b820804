"""Loggers: programs that show what trainings and evaluations measure. Outside every digest."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints

from unic_pipe.schemas.base import Document, Model, Name

Text = Annotated[str, StringConstraints(min_length=1)]


class WandbConfig(Model):
    """Weights & Biases (extra `wandb`)."""

    project: Text = "unic-pipe"
    """Where its runs are found."""
    entity: Text | None = None
    """User or team; None: your own."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes files for `wandb sync`; None: as `WANDB_MODE` or `wandb offline` say, which is online."""


class MlflowConfig(Model):
    """MLflow (extra `mlflow`)."""

    experiment: Text = "unic-pipe"
    """Where its runs are found; made if there is none."""
    tracking_uri: Text | None = None
    """A server or a database; None: `MLFLOW_TRACKING_URI`, or else `loggers/mlflow.db` in the working folder."""


class TrackioConfig(Model):
    """trackio (extra `trackio`)."""

    project: Text = "unic-pipe"
    """Where its runs are found."""
    space: Text | None = None
    """A Hugging Face Space, `USER/NAME`; None: this machine (`TRACKIO_DIR`)."""


class LoggersConfig(Model):
    """Where else the rows of `metrics.parquet`, scores and pictures are sent."""

    wandb: WandbConfig | None = None
    """Weights & Biases; `{}` is enough."""
    mlflow: MlflowConfig | None = None
    """MLflow; `{}` is enough."""
    trackio: TrackioConfig | None = None
    """trackio; `{}` is enough."""
    installed: tuple[Name, ...] = ()
    """Loggers that installed packages offer (entry points of the group `unic_pipe.loggers`), by name."""


class LoggedRun(Document):
    """`logged/<logger>.json` in the folder of a student or an evaluation: its run in that program."""

    KIND: ClassVar[str] = "logged-run"

    id: str
    """Under which that program knows it."""
    step: int | None = None
    """The last step that was sent."""
