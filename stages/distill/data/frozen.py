"""What a student rests on, frozen when its training starts: rows, steps and the statistics of its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import FeatureCache
from pipeline.cache.statistics import merge_statistics
from pipeline.storage import LocalStore
from schemas.base import digest_of, short
from schemas.errors import StageError, UserError
from schemas.features import StatisticsDocument
from schemas.students import StudentDefinition, StudentManifest
from stages.distill.data.rows import rows_digest, trained_tokens

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Frozen:
    """A student's manifest, and each teacher's statistics (None: targets are not standardized)."""

    manifest: StudentManifest
    statistics: Mapping[str, StatisticsDocument] | None


def freeze(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    caches: Mapping[str, FeatureCache],
    rows_N: NDArray[np.int64],
) -> Frozen:
    """Write the statistics and the manifest of a new student, or read those of one whose training has begun.

    Raises:
        UserError: fewer usable rows than one batch; a damaged document.
        StageError: the rows or statistics are no longer those that the training began with.
    """
    try:
        raw = store.get(MANIFEST)
    except FileNotFoundError:
        return _begin(store, name, definition, caches, rows_N)
    manifest = StudentManifest.from_bytes(raw, str(store.path(MANIFEST)))
    if manifest.digest != digest_of(definition):
        raise StageError(
            f"{store.path(MANIFEST)} describes student {short(manifest.digest)}, not {short(digest_of(definition))}.",
            f"Move {store.root} away and run the same command again.",
        )
    if manifest.rows_digest != rows_digest(rows_N):
        raise StageError(
            f"Student {name} began with {manifest.rows:,} usable rows; now other rows are usable ({len(rows_N):,}).",
            f"Features were repaired differently. Start again: mv {store.root} {store.root}.old",
        )
    statistics = {teacher: _reread(store, manifest, teacher, definition, caches) for teacher in manifest.statistics}
    return Frozen(manifest, statistics or None)


def _begin(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    caches: Mapping[str, FeatureCache],
    rows_N: NDArray[np.int64],
) -> Frozen:
    optimizer = definition.config.optimizer
    if len(rows_N) < optimizer.batch:
        raise UserError(
            f"Student {name}: {len(rows_N):,} usable rows are fewer than one batch ({optimizer.batch:,}).",
            f"Set students.{name}.optimizer.batch lower, or train on more rows.",
        )
    statistics: dict[str, StatisticsDocument] = {}
    if definition.config.loss.standardize == "exact":
        statistics = {teacher: _merge(cache, definition) for teacher, cache in caches.items()}
    for teacher, document in statistics.items():
        store.put(_key(teacher), document.to_bytes())
    manifest = StudentManifest(
        name=name,
        definition=definition,
        digest=digest_of(definition),
        statistics={teacher: digest_of(document) for teacher, document in statistics.items()},
        rows=len(rows_N),
        rows_digest=rows_digest(rows_N),
        steps=optimizer.epochs * (len(rows_N) // optimizer.batch),
    )
    store.create(MANIFEST, manifest.to_bytes())
    return Frozen(manifest, statistics or None)


def _reread(
    store: LocalStore,
    manifest: StudentManifest,
    teacher: str,
    definition: StudentDefinition,
    caches: Mapping[str, FeatureCache],
) -> StatisticsDocument:
    """The frozen statistics; computed again where the file is gone, if that gives the same."""
    key = _key(teacher)
    try:
        document = StatisticsDocument.from_bytes(store.get(key), str(store.path(key)))
    except FileNotFoundError:
        document = _merge(caches[teacher], definition)
        if digest_of(document) == manifest.statistics[teacher]:
            store.put(key, document.to_bytes())
    if digest_of(document) != manifest.statistics[teacher]:
        raise StageError(
            f"{store.path(key)} is not what student {manifest.name} began with.",
            f"Restore it, or start again: mv {store.root} {store.root}.old",
        )
    return document


def _merge(cache: FeatureCache, definition: StudentDefinition) -> StatisticsDocument:
    views, tokens = range(definition.views), trained_tokens(definition.config)
    patch_views = None if definition.patch_views is None else range(definition.patch_views)
    return merge_statistics(cache.folder, views, definition.blocks, tokens, patch_views)


def _key(teacher: str) -> str:
    return f"statistics/{teacher}.json"
