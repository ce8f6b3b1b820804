"""unic-pipe: several frozen vision encoders distilled into one student, from a feature cache.

The names that other programs need: `Pipeline` (the commands), `embed`, `FeatureCache`, `load_encoder`, `load_student`,
`open_dataset`, `Config`, and what is raised, `UserError` and `StageError`. They are imported when they are first asked for,
so that `unic-pipe status` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unic_pipe.cli.api import Pipeline, embed
    from unic_pipe.pipeline.cache.reader import FeatureCache
    from unic_pipe.pipeline.encoders.loading import load_encoder
    from unic_pipe.pipeline.samples.dataset import open_dataset
    from unic_pipe.pipeline.students.loading import load_student
    from unic_pipe.schemas.config import Config
    from unic_pipe.schemas.errors import StageError, UserError

__all__ = [
    "Config", "FeatureCache", "Pipeline", "StageError", "UserError", "embed", "load_encoder", "load_student",
    "open_dataset",
]  # fmt: skip

_HOME = {
    "Config": "unic_pipe.schemas.config",
    "FeatureCache": "unic_pipe.pipeline.cache.reader",
    "Pipeline": "unic_pipe.cli.api",
    "StageError": "unic_pipe.schemas.errors",
    "UserError": "unic_pipe.schemas.errors",
    "embed": "unic_pipe.cli.api",
    "load_encoder": "unic_pipe.pipeline.encoders.loading",
    "load_student": "unic_pipe.pipeline.students.loading",
    "open_dataset": "unic_pipe.pipeline.samples.dataset",
}

if not (Path(__file__).parent / "schemas" / "base.py").exists():
    # A checkout without symbolic links (git on Windows): the four folders are found at its top level.
    __path__.append(str(Path(__file__).parents[2]))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("unic-pipe")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
