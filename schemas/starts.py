"""What a student may start from (`students.NAME.init`)."""

from __future__ import annotations

from unic_pipe.schemas.base import Model

PRETRAINED = "pretrained"
"""Short for `timm:ARCHITECTURE`."""
TEACHER = "teacher:"
"""`teacher:NAME` is the weights of the configured teacher of that name."""


class Start(Model):
    """Weights that a student starts from, where a name alone does not say which."""

    encoder: str
    """As `init` without fields."""
    weights: str | None = None
    """As of an encoder: a local weights file instead of the named one's."""
    prefix: str | None = None
    """As of an encoder: what stands before the weights' keys in the file."""
