"""Small documents of the feature cache that tests of several folders are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.workspace.students import student_definition
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.features import (
    BadRow,
    CodecDefinition,
    ComputeDefinition,
    EncoderDefinition,
    FeatureDefinition,
    FeatureManifest,
)
from unic_pipe.schemas.recipes import CENTER, GENTLE
from unic_pipe.schemas.samples import DatasetManifest, Segment
from unic_pipe.schemas.students import StudentDefinition

Codec = Literal["float16", "int8", "klt", "auto"]
ENCODER: Mapping[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "weights": "random:0",
    "readout": "vit",
    "image_size": 32,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def encoder_definition(cls_dim: int, patch_dim: int, grid: tuple[int, int], **changes: Any) -> EncoderDefinition:
    """An encoder whose tokens have these sizes; `changes` replace fields of `ENCODER`."""
    return EncoderDefinition(**{**ENCODER, **changes}, cls_dim=cls_dim, patch_dim=patch_dim, grid=grid)


def feature_definition(
    encoder: EncoderDefinition, block_rows: int, codec: Codec | CodecDefinition, **changes: Any
) -> FeatureDefinition:
    """Centre crops of a dataset that does not exist, in batches of 8, unless `changes` say otherwise."""
    fields = {
        "dataset": "0" * 64,
        "recipe": CENTER,
        "view_seed": 0,
        "codec": codec if isinstance(codec, CodecDefinition) else CodecDefinition(name=codec),
        "compute": ComputeDefinition(dtype="float32", batch=8, threads=1),
        **changes,
    }
    return FeatureDefinition(block_rows=block_rows, encoder=encoder, **fields)


def feature_manifest(definition: FeatureDefinition, dataset: str = "train", encoder: str = "dino") -> FeatureManifest:
    """The manifest of a folder of such features."""
    return FeatureManifest(dataset=dataset, encoder=encoder, definition=definition, digest=digest_of(definition))


def bad_rows(valid_N: NDArray[np.bool_], reason: str = "undecodable: cut off") -> tuple[BadRow, ...]:
    """Entries of the ledger for the rows of a block that are not valid."""
    return tuple(BadRow(offset=int(o), key=f"k{o}", reason=reason) for o in np.flatnonzero(~valid_N))


ROWS = "d" * 64
DATASET = DatasetManifest(
    name="train", source="x", layout="tars", block_rows=256, classes=None, labelled=False, permuted=False,
    segments=(Segment(file="s", first_row=0, rows=600, rows_digest=ROWS, labels_digest=ROWS, file_digest="0" * 32, shards=()),),
)  # fmt: skip


def features(**changes: Any) -> FeatureDefinition:
    """A teacher's features of the dataset of `define`."""
    encoder = encoder_definition(8, 9, (14, 14))
    base = feature_definition(encoder, 256, "int8", dataset=ROWS, recipe=GENTLE)
    return base.model_copy(update=changes)


def define(student: dict[str, Any], teachers: dict[str, FeatureDefinition], name: str = "main") -> StudentDefinition:
    """The definition of a student with these settings."""
    config = Config.model_validate(
        {
            "samples": {"datasets": {"train": {"source": "x"}}},
            "teachers": {teacher: {} for teacher in teachers},
            "students": {"main": student},
        }
    )
    return student_definition(config, name, DATASET, teachers, 3, 2)
