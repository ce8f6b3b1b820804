"""A feature folder of a few tiny blocks, made and made again as the extract stage does.

Legend: N rows of a block, P tokens, D dimensions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from builders import bad_rows, encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import write_losses
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.statistics import merge_statistics
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import StageError, UnicPipeError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.views import Probe, ProbesDocument, ViewParameters

CLS, PATCH, GRID, BLOCK_ROWS, BLOCKS = 3, 2, (2, 2), 4, 3
END_ROW = BLOCKS * BLOCK_ROWS - 1
TOKENS = ("cls", "patch")


class Rows:
    """A dataset as verify sees it."""

    blocks = BLOCKS

    def block_digest(self, block: int) -> str:
        return hashlib.sha256(str(block).encode()).hexdigest()


DIGESTS = [Rows().block_digest(b) for b in range(BLOCKS)]


def manifest() -> FeatureManifest:
    return feature_manifest(feature_definition(encoder_definition(CLS, PATCH, GRID), BLOCK_ROWS, "int8"))


def features(token: str, block: int) -> np.ndarray:
    count = min(BLOCK_ROWS, END_ROW - block * BLOCK_ROWS)
    shape = (count, CLS) if token == "cls" else (count, GRID[0] * GRID[1], PATCH)
    return np.random.default_rng([token == "cls", block]).normal(size=shape).astype(np.float32)


def commit(folder: FeatureFolder, token: str, block: int, change: float = 0.0) -> None:
    values = features(token, block) + np.float32(change)
    valid_N = np.arange(len(values)) != (1 if block == 1 else 99)
    commit_unit(folder, 0, token, block, values, valid_N, bad_rows(valid_N), rows_digest=DIGESTS[block], batch=8)


def extract(path, fold: bool = True) -> list[tuple[str, int]]:
    """What the extract stage does, with given features: makes what is not covered, and says what that was."""
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest())
    made = []
    for token in TOKENS:
        prepare_view(folder, 0, token, END_ROW)
        for block in np.flatnonzero(~folder.covered(0, token, DIGESTS)).tolist():
            commit(folder, token, block)
            made.append((token, block))
        if fold:
            folder.fold(0, token)
    write_ledger(folder)
    write_losses(folder)
    keep_statistics(folder)
    return made


def keep_statistics(folder) -> None:
    """As earlier versions did."""
    document = merge_statistics(folder, [0], BLOCKS)
    folder.store.put(f"statistics/{digest_of(document)[:8]}.json", document.to_bytes())


def write_probe(path) -> None:
    store = LocalStore(path)
    store.put("probes/view-000-abcd.png", b"a picture")
    parameters = ViewParameters(0, 0, 8, 8, False, (), False, None, False)
    probe = Probe(key="k", parameters=parameters, file="probes/view-000-abcd.png", png=sha256(b"a picture"))
    document = ProbesDocument(recipe="0" * 64, seed=0, view=0, size=8, probes=(probe,))
    store.put("probes/view-000.json", document.to_bytes())


def contents(path) -> dict[str, bytes]:
    store = LocalStore(path)
    keys = [k for k in store.keys() if not k.startswith("damaged/")]  # noqa: SIM118
    return {key: store.get(key) for key in keys}


def check_reads(path) -> None:
    """Every block reads as what was committed, or raises an error for people; never anything else."""
    try:
        cache = FeatureCache.open(path)
    except UnicPipeError:
        return
    for token in TOKENS:
        for block in range(BLOCKS):
            try:
                got = cache.read_block(0, token, block, rows_digest=DIGESTS[block])
            except StageError as error:
                assert "unic-pipe" in str(error)  # noqa: PT017
                continue
            expected = features(token, block)
            assert got.values[got.valid] == pytest.approx(expected[got.valid], abs=0.05)
