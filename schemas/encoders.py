"""Documents about encoders: where weights come from, and the answers that make `status` quick."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import StringConstraints

from unic_pipe.schemas.base import Document, InsidePath, Model
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.features import EncoderDefinition, Readout


class EncoderCard(Model):
    """What is known about an encoder before its weights are opened."""

    name: str
    """Registry name, or `timm:NAME`."""
    architecture: str
    """timm model name without the tag of its weights."""
    model_args: dict[str, Scalar] = {}
    conversion: str = "timm"
    licence: str = "unknown"
    """Licence of the weights as their authors state it (SPDX where there is one)."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    readout: Readout | None = None
    """How its tokens are read, where that is known: as its makers' code says, or a student's export records it."""
    source: str
    """Where the weights come from, for people."""
    files: tuple[InsidePath, ...] = ()
    """File names searched in `weights_dir`, in this order; a download gets the first one."""
    hub_id: str | None = None
    """Hugging Face repository that timm reads."""
    hub_files: tuple[InsidePath, ...] = ()
    """File names in that repository, the preferred one first."""
    url: str | None = None
    """Download address of the official file."""
    package: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")] | None = None
    """Import name of the Python package that carries the weights."""


class EncoderReading(Model):
    """How an encoder was read, for people; nothing here is part of its identity."""

    section: str = ""
    """Section of the weights file that was read; empty for the whole file."""
    beside: tuple[str, ...] = ()
    """Other sections of the file that hold such weights."""
    pooling: str = ""
    """What cls is."""
    parameters: int = 0
    """Of the network; 0 where it was read by an earlier version."""
    untouched_statistics: bool = False
    """Whether BatchNorm's statistics in the file are those from before any training."""


class EncoderCache(Document):
    """`runs/encoders.json`: answers that can be computed again, so that planning needs no PyTorch."""

    KIND: ClassVar[str] = "encoder-cache"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    cards: dict[str, EncoderCard] = {}
    """Cards of `timm:` models, by name and versions."""
    definitions: dict[str, EncoderDefinition] = {}
    """Definitions, by a digest of configuration, file states and versions."""
    readings: dict[str, EncoderReading] = {}
    """How these encoders were read, by the same digests."""
