"""Frozen encoders: finding weights, converting official files, running them, exporting students.

Importing this package is cheap: PyTorch is imported by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder, resolve_encoder

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.encoder import Encoder
    from unic_pipe.pipeline.encoders.export import export_student
    from unic_pipe.pipeline.encoders.loading import load_encoder
    from unic_pipe.pipeline.encoders.readouts import Tokens

__all__ = ["Encoder", "ResolvedEncoder", "Tokens", "export_student", "load_encoder", "resolve_encoder"]

_LAZY = {"Encoder": "encoder", "Tokens": "readouts", "export_student": "export", "load_encoder": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"unic_pipe.pipeline.encoders.{_LAZY[name]}"), name)
