"""Configuration of the evaluations that are no probes of labelled images: zero-shot, and protocols on patch tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Model, Name

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


DenseProbe = Literal["segmentation", "in-context", "depth"]
