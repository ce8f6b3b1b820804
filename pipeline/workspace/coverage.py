"""What is recorded of features that are needed. No torch here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.samples import Dataset
from unic_pipe.pipeline.storage import Store
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import FeatureManifest


class Recorded(NamedTuple):
    """What records say of a need's units."""

    covered: dict[tuple[int, TokenType], NDArray[np.bool_]]
    """Which blocks are finished, by view and token type."""
    batches: frozenset[int]
    """Batch sizes with which units were made."""


def recorded(dataset: Dataset | None, need: FeatureNeed, blocks: int, store: Store) -> Recorded:
    """What the records in a folder say of blocks 0 to `blocks` - 1 of a dataset; nothing where the folder is of another need."""
    planes = need.planes()
    manifest = usable_document(store, "manifest.json", FeatureManifest)
    if dataset is None or manifest is None or manifest.digest != need.digest:
        return Recorded({plane: np.zeros(blocks, bool) for plane in planes}, frozenset())
    folder, found, batches = FeatureFolder(store, frozen=store.remote), {}, set[int]()
    rows = dataset.block_digests(blocks)
    for plane in planes:
        found[plane] = folder.covered(*plane, rows)
        batches |= folder.batches(*plane)
    return Recorded(found, frozenset(batches))
