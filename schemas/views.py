"""Documents of views: the parameters of one view, and the probes that show whether rendering has changed (R7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from unic_pipe.schemas.base import Digest, Document, Model

JitterOperation = Literal["brightness", "contrast", "saturation", "hue"]


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """Everything that was drawn for one view of one sample; the same for every encoder, whatever its input size.

    The box (`top`, `left`, `height`, `width`) is in pixels of the decoded image. `jitter` holds the colour operations
    with their factors in the order in which they are applied (empty: not applied). `blur_sigma` is in reference
    pixels of the recipe (None: no blur).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: tuple[tuple[JitterOperation, float], ...]
    grayscale: bool
    blur_sigma: float | None
    solarize: bool


class Probe(Model):
    """One rendered view of one sample, kept as a picture."""

    key: str
    parameters: ViewParameters
    file: str
    """PNG, relative to the feature folder."""
    png: Digest
    """SHA-256 of that file."""


class ProbesDocument(Document):
    """`probes/view-000.json` of a feature folder: created once, after its pictures and before the view's first unit."""

    KIND: ClassVar[str] = "probes"

    recipe: Digest
    seed: int
    view: int
    size: int
    """Height and width of the pictures in pixels."""
    probes: tuple[Probe, ...]
