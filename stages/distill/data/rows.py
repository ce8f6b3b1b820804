"""What a student rests on: the rows that are usable for every teacher, view and token type (R6), and what is frozen when
its training starts: rows, steps and the statistics of its targets.

Shapes: N usable rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.reader import FeatureCache, valid_rows
from unic_pipe.pipeline.cache.statistics import merge_statistics, mixed_statistics
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.mixtures import Mixture, Part, without_place
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.ablation import setting_of
from unic_pipe.schemas.base import digest_of, short
from unic_pipe.schemas.config import StudentConfig, TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.losses import EXACT
from unic_pipe.schemas.students import StudentDefinition, StudentManifest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """Samples, and every teacher's features of them."""

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


@dataclass(frozen=True)
class Frozen:
    """A student's manifest, and each teacher's statistics (None: targets are not standardized)."""

    manifest: StudentManifest
    statistics: Mapping[str, StatisticsDocument] | None


def freeze(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    training: Sequence[Rows],
) -> Frozen:
    """Write the statistics and the manifest of a new student, or read those of one whose training has begun.

    Raises:
        UserError: fewer usable rows than one batch; a damaged document.
        StageError: the rows or statistics are no longer those that the training began with.
    """
    try:
        raw = store.get(MANIFEST)
    except FileNotFoundError:
        return _begin(store, name, definition, training)
    rows_N = mixture_of(training, definition.config).rows_N
    manifest = StudentManifest.from_bytes(raw, str(store.path(MANIFEST)))
    if manifest.digest != digest_of(definition):
        raise StageError(
            f"{store.path(MANIFEST)} describes student {short(manifest.digest)}, not {short(digest_of(definition))}.",
            f"Move {store.root} away and run the same command again.",
        )
    if manifest.rows_digest != rows_digest(rows_N):
        raise StageError(
            f"Student {name} began with {manifest.rows:,} usable rows; now other rows are usable ({len(rows_N):,}).",
            f"Images were deleted, or features repaired differently. Start again: mv {store.root} {store.root}.old",
        )
    statistics = {teacher: _reread(store, manifest, teacher, training) for teacher in manifest.statistics}
    return Frozen(manifest, statistics or None)


def _begin(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    training: Sequence[Rows],
) -> Frozen:
    optimizer, mixture = definition.config.optimizer, mixture_of(training, definition.config)
    rows_N = mixture.rows_N
    if mixture.steps == 0:
        given = {r.source.dataset.manifest.name: r.source.share * len(r.rows_N) for r in training}
        error = without_place(setting_of(name), given, optimizer.batch, definition.config.streams)
        if sum(given.values()) >= optimizer.batch and error is not None:
            raise error
        raise UserError(
            f"Student {name}: {len(rows_N):,} usable rows are fewer than one batch ({optimizer.batch:,}).",
            f"Set students.{setting_of(name)}.optimizer.batch lower, or train on more rows.",
        )
    statistics: dict[str, StatisticsDocument] = {}
    if any(definition.config.loss.normaliser(token) in EXACT for token in trained_tokens(definition.config)):
        statistics = {teacher: _merge(teacher, training, definition) for teacher in training[0].source.caches}
    for teacher, document in statistics.items():
        store.put(_key(teacher), document.to_bytes())
    manifest = StudentManifest(
        name=name,
        definition=definition,
        digest=digest_of(definition),
        statistics={teacher: digest_of(document) for teacher, document in statistics.items()},
        rows=len(rows_N),
        rows_digest=rows_digest(rows_N),
        steps=optimizer.epochs * mixture.steps,
    )
    store.create(MANIFEST, manifest.to_bytes())
    return Frozen(manifest, statistics or None)


def _reread(store: LocalStore, manifest: StudentManifest, teacher: str, training: Sequence[Rows]) -> StatisticsDocument:
    """The frozen statistics; computed again where the file is gone, if that gives the same."""
    key = _key(teacher)
    try:
        document = StatisticsDocument.from_bytes(store.get(key), str(store.path(key)))
    except FileNotFoundError:
        document = _merge(teacher, training, manifest.definition)
        if digest_of(document) == manifest.statistics[teacher]:
            store.put(key, document.to_bytes())
    if digest_of(document) != manifest.statistics[teacher]:
        raise StageError(
            f"{store.path(key)} is not what student {manifest.name} began with.",
            f"Restore it, or start again: mv {store.root} {store.root}.old",
        )
    return document


def _merge(teacher: str, training: Sequence[Rows], definition: StudentDefinition) -> StatisticsDocument:
    views, tokens = range(definition.views), trained_tokens(definition.config)
    patch_views = None if definition.patch_views is None else range(definition.patch_views)
    documents = [
        merge_statistics(rows.source.caches[teacher].folder, views, blocks, tokens, patch_views)
        for rows, (_, blocks) in zip(training, definition.datasets, strict=True)
    ]
    return mixed_statistics(documents, [rows.source.share for rows in training])


def _key(teacher: str) -> str:
    return f"statistics/{teacher}.json"
