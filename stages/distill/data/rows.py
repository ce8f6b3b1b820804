"""What a student rests on: the rows that are usable for all of their teachers, views and token types (R6).

Shapes: N usable rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.reader import FeatureCache, valid_rows
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.mixtures import Mixture, Part
from unic_pipe.schemas.config import StudentConfig, TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.students import StudentDefinition

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """Samples, and their features by every teacher that teaches on them."""

    dataset: Dataset
    caches: Mapping[str, FeatureCache]
    share: float = 1.0
    """How often an epoch passes through it, at most once."""


@dataclass(frozen=True)
class Rows:
    """A source, and its rows that can be used."""

    source: Source
    rows_N: NDArray[np.int64]


def mixture_of(training: Sequence[Rows], config: StudentConfig) -> Mixture:
    """How a student's batches are made of its training sets."""
    parts = [Part(r.source.dataset.digest, r.source.dataset.block_rows, r.rows_N, r.source.share) for r in training]
    return Mixture(tuple(parts), config.draws_seed, config.optimizer.batch, config.streams, config.window_blocks)


def training_rows(training: Sequence[Source], definition: StudentDefinition) -> tuple[Rows, ...]:
    """The usable rows of a student's training sets. Raises StageError, as `usable_rows` does."""
    views, patch_views, tokens = definition.views, definition.patch_views, trained_tokens(definition.config)
    return tuple(
        Rows(source, usable_rows(source.dataset, source.caches, views, tokens, blocks, patch_views))
        for source, (_, blocks) in zip(training, definition.datasets, strict=True)
    )


def trained_tokens(config: StudentConfig) -> tuple[TokenType, ...]:
    """The token types that the loss uses."""
    return config.loss.trained


def usable_rows(
    dataset: Dataset,
    caches: Mapping[str, FeatureCache],
    views: int,
    tokens: Iterable[TokenType],
    blocks: int,
    patch_views: int | None = None,
) -> NDArray[np.int64]:
    """Row numbers, ascending, of blocks 0 to `blocks` - 1 that are valid in every cache, view and token type, and not
    deleted since.

    `patch_views`: number of views that carry patches, all if None.

    Raises:
        StageError: a cache lacks a unit, or was made from other rows than the dataset holds.
    """
    ranges = [dataset.block_range(block) for block in range(blocks)]
    valid = [dataset.kept(block) for block in range(blocks)]
    digests = dataset.block_digests(blocks)
    for teacher, cache in caches.items():
        for view in range(views):
            for token in tokens:
                if token == "cls" or patch_views is None or view < patch_views:
                    _restrict(valid, digests, teacher, cache, view, token)
    rows = [first + np.flatnonzero(bits) for (first, _), bits in zip(ranges, valid, strict=True)]
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def rows_digest(rows_N: NDArray[np.int64]) -> str:
    """SHA-256 (64 hex digits) over the row numbers as little-endian int64."""
    return hashlib.sha256(rows_N.astype("<i8").tobytes()).hexdigest()


def _restrict(
    valid: list[NDArray[np.bool_]], digests: list[str], teacher: str, cache: FeatureCache, view: int, token: TokenType
) -> None:
    records = cache.records(view, token)
    missing = [block for block in range(len(valid)) if block not in records]
    if missing:
        done = 100 * (1 - len(missing) / len(valid))
        raise StageError(
            f"Teacher {teacher} is incomplete: view {view} ({token}) is at {done:.0f} %, "
            f"{len(missing)} of {len(valid)} blocks are missing.",
            f"Run: unic-pipe extract --teacher {teacher}",
        )
    for block, bits in enumerate(valid):
        record = records[block]
        if record.count != len(bits) or record.rows != digests[block]:
            raise StageError(
                f"Features of teacher {teacher}, view {view} ({token}), block {block} belong to other samples than "
                f"the dataset holds now.",
                f"Run: unic-pipe verify, then unic-pipe extract --teacher {teacher}",
            )
        bits &= valid_rows(record)
