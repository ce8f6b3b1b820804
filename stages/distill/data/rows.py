"""The rows that a student trains on: those that are usable for every teacher, view and token type (R6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import FeatureCache, valid_rows
from pipeline.samples.dataset import Dataset
from schemas.config import StudentConfig, TokenType
from schemas.errors import StageError


def trained_tokens(config: StudentConfig) -> tuple[TokenType, ...]:
    """The token types that the loss uses."""
    return ("cls", "patch") if config.loss.tokens == "both" else (config.loss.tokens,)


def usable_rows(
    dataset: Dataset,
    caches: Mapping[str, FeatureCache],
    views: int,
    tokens: Iterable[TokenType],
    blocks: int,
    patch_views: int | None = None,
) -> NDArray[np.int64]:
    """Row numbers, ascending, of blocks 0 to `blocks` - 1 that are valid in every cache, view and token type.

    `patch_views`: number of views that carry patches, all if None.

    Raises:
        StageError: a cache lacks a unit, or was made from other rows than the dataset holds.
    """
    ranges = [dataset.block_range(block) for block in range(blocks)]
    valid = [np.ones(count, dtype=np.bool_) for _, count in ranges]
    digests = [dataset.block_digest(block) for block in range(blocks)]
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
