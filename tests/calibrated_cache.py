"""A feature folder in every codec, calibrated ones too, of features that a test gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.calibration import bound_codec, ensure_calibration, propose
from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.fitting import Sample, fit
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.features import CalibrationDocument, CodecDefinition, CodecTrial
from unic_pipe.schemas.recipes import UNIC

GRID, D, ROWS, COUNT = (2, 2), 8, 64, 150
SHAPES = {"cls": (D,), "patch": (4, D)}


def features(token: str, block: int) -> np.ndarray:
    count = min(ROWS, COUNT - block * ROWS)
    mixing = np.random.default_rng(1).normal(size=(D, D))
    return (np.random.default_rng([7, block]).normal(size=(count, *SHAPES[token])) @ mixing).astype(np.float32)


def far_out(transform: Any) -> np.ndarray:
    """What moves one coefficient of a row of patches beyond 16 bits."""
    spatial, basis = (np.eye(n) if m is None else m for n, m in ((4, transform.spatial_PP), (D, transform.basis_DD)))
    return (40_000 * transform.step * np.outer(spatial[0], basis[0]) * transform.scale_D).astype(np.float32)


def written(
    path: Path, codec: str, features: Callable[[str, int], np.ndarray] = features, far: bool = True
) -> FeatureFolder:
    """A folder of three blocks, the last one short; two rows cannot be used, and one value is beyond 16 bits (`far`)."""
    folder = FeatureFolder(LocalStore(path))
    asked = CodecDefinition(name=codec if codec in ("float16", "int8") else "auto", snr_db=15.0)
    definition = feature_definition(encoder_definition(D, D, GRID), ROWS, asked, recipe=UNIC)
    manifest = feature_manifest(definition)
    folder.create(manifest)
    for token, shape in SHAPES.items():
        if asked.calibrated:
            sample = np.concatenate([features(token, b) for b in range(2)])
            transform = fit(Sample.of(sample), shape, 15.0, transform=codec == "klt")
            document = CalibrationDocument(
                definition=manifest.digest, token=token, codec=codec, step=transform.step, rounding=transform.rounding,
                rows=len(sample), rows_digest="0" * 64, trials=(CodecTrial(codec=codec, bits_per_value=2.0, snr_db=15.0),),
            )  # fmt: skip
            ensure_calibration(folder, token, lambda made=propose(document, transform): made)
        prepare_view(folder, 0, token, COUNT)
        for block in range(3):
            values, valid = features(token, block), np.ones(min(ROWS, COUNT - block * ROWS), bool)
            valid[[0, 7]] = False
            if far and asked.calibrated and (token, block) == ("patch", 1):
                values[3] += far_out(bound_codec(folder, token).transform)
            rows = hashlib.sha256(str(block).encode()).hexdigest()
            commit_unit(folder, 0, token, block, values, valid, rows_digest=rows, batch=8)
        folder.fold(0, token)
    return folder
