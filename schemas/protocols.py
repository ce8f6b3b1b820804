"""Configuration of the evaluations that are no probes of labelled images: zero-shot, and protocols on patch tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unic_pipe.schemas.base import Model, Name
from unic_pipe.schemas.probes import PROBES, DenseOption

TEXT_FILES = (".npz", ".safetensors")
"""Files that hold embeddings; any other file of classes holds their names."""


class ZeroShotConfig(Model):
    """Zero-shot classification with a CLIP-like teacher's text embeddings, by it and by every student of it."""

    teacher: Name
    """A teacher whose weights file holds its projection into the space of the text embeddings."""
    test: Name
    """A labelled dataset."""
    classes: str
    """Text embeddings in the order of the class numbers: `.npz` with arrays `embeddings` (classes × dims) and `names`, or
    `.safetensors` with the tensor `embeddings` and the metadata entry `names` (a JSON list). A text file with one class
    name a line is embedded by `text_model`."""
    text_model: str | None = None
    """open_clip's name of the model whose text encoder belongs to the teacher, such as `ViT-H-14-quickgelu`."""
    text_weights: str | None = None
    """open_clip's tag of its weights, such as `metaclip_fullcc`, or a file."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}.",)
    """Prompts; a class's embedding is the mean of its normalised prompts' embeddings."""
    note: str = ""
    """Shown in the report."""

    @model_validator(mode="after")
    def _texts_come_from_somewhere(self) -> Self:
        named = not self.classes.endswith(TEXT_FILES)
        if named and (self.text_model is None or self.text_weights is None):
            raise ValueError("class names need text_model and text_weights (open_clip's names) to be embedded")
        if not named and (self.text_model is not None or self.text_weights is not None):
            raise ValueError("this file holds embeddings: text_model and text_weights are for a file of names")
        if wrong := [t for t in self.templates if "{}" not in t]:
            raise ValueError(f"templates: {wrong[0]!r} has no {{}} for the class name")
        return self


class DenseConfig(Model):
    """Segmentation or depth from frozen patch tokens: images of two datasets, and a folder of label maps for each."""

    kind: Literal["segmentation", "depth"]
    """What the label maps hold: classes, or distances."""
    train: Name
    """A dataset; it needs no class labels."""
    test: Name
    """Another one."""
    train_labels: str
    """Folder of label maps, `KEY.png` for the sample `KEY`: 8- or 16-bit PNGs of the shape of the image. ADE20K:
    `annotations/training`."""
    test_labels: str
    """The same for `test`."""
    classes: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Number of classes of a segmentation."""
    first_class: Annotated[int, Field(ge=0)] = 0
    """Value of the first class in the label maps; whatever is no class is ignored. ADE20K: 1, for 0 is `other`."""
    metres: Annotated[float, Field(gt=0)] = 0.001
    """Metres per unit of the depth maps; 0 is unknown."""
    max_depth: Annotated[float, Field(gt=0)] = 10.0
    """Metres; what is farther is not learnt and not scored."""
    pixels: Annotated[int, Field(ge=8, le=16_384)] = 224
    """Side of the square at whose resolution everybody is trained and scored: the centre crop, whatever an encoder's input."""
    probes: Annotated[tuple[DenseOption, ...], Field(min_length=1)] = ("linear", "in-context")
    """A linear head, and (segmentation) retrieval without training."""
    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 40_000
    """Optimizer steps of the linear head."""
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Images of a step of the linear head."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Its learning rate."""
    memory: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_024_000
    """Training patches that are kept to look up in, at most."""
    k: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Neighbours that retrieval asks."""
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """Of their votes: exp(similarity / temperature)."""
    seed: int = 0
    """Of the head's start and order, and of the patches that are kept."""
    note: str = ""
    """Shown in the report."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind == "segmentation" and self.classes is None:
            raise ValueError("a segmentation needs the number of its classes (ADE20K: classes: 150, first_class: 1)")
        if not self.protocols:
            raise ValueError(f"none of these probes ({', '.join(self.probes)}) is for {self.kind}")
        return self

    @property
    def protocols(self) -> tuple[str, ...]:
        """The probes of this kind by the names that results have; a depth benchmark needs not say `probes`."""
        own = {probe.option: name for name, probe in PROBES.items() if probe.task == self.kind}
        return tuple(own[option] for option in dict.fromkeys(self.probes) if option in own)
