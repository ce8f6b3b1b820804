"""What is frozen when a student's training starts: rows, steps and the statistics of its targets.

Shapes: N usable rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.statistics import merge_statistics, mixed_statistics
from unic_pipe.pipeline.samples.mixtures import without_place
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.labels import setting_of
from unic_pipe.pipeline.workspace.targets import document_key
from unic_pipe.schemas.base import digest_of, short
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.losses import EXACT
from unic_pipe.schemas.students import StudentDefinition, StudentManifest
from unic_pipe.stages.distill.data.rows import Rows, mixture_of, rows_digest, trained_tokens
from unic_pipe.stages.distill.data.target_statistics import Measured, measure, needed, read, write

MANIFEST = "manifest.json"
Classifier = Callable[[str], Doubles]
"""A teacher's classifier, (C, D + 1): weights, and biases in the last column."""


@dataclass(frozen=True)
class Frozen:
    """A student's manifest, and each teacher's statistics (None: targets are not standardized)."""

    manifest: StudentManifest
    statistics: Mapping[str, StatisticsDocument] | None
    targets: Mapping[str, Measured] = field(default_factory=dict)
    """By teacher, what is known of its targets beside, where the loss needs it."""


def freeze(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    training: Sequence[Rows],
    classifier: Classifier | None = None,
) -> Frozen:
    """Write the statistics and the manifest of a new student, or read those of one whose training has begun.

    `classifier`: gives that of a teacher, for a loss about logits.

    Raises:
        UserError: fewer usable rows than one batch; a damaged document.
        StageError: the rows or statistics are no longer those that the training began with.
    """
    try:
        raw = store.get(MANIFEST)
    except FileNotFoundError:
        return _begin(store, name, definition, training, classifier)
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
    targets = {teacher: _targets(store, manifest, teacher, training, classifier) for teacher in manifest.targets}
    return Frozen(manifest, statistics or None, targets)


def _begin(
    store: LocalStore,
    name: str,
    definition: StudentDefinition,
    training: Sequence[Rows],
    classifier: Classifier | None,
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
        statistics = {t.name: _merge(t.name, training, definition) for t in definition.teachers}
    for teacher, document in statistics.items():
        store.put(_key(teacher), document.to_bytes())
    needs = {t.name: wanted for t in definition.teachers if (wanted := needed(definition.config.loss, t.name))}
    targets = {teacher: measure(teacher, training, wanted, classifier) for teacher, wanted in needs.items()}
    for teacher, measured in targets.items():
        write(store, teacher, measured)
    manifest = StudentManifest(
        name=name,
        definition=definition,
        digest=digest_of(definition),
        statistics={teacher: digest_of(document) for teacher, document in statistics.items()},
        targets={teacher: digest_of(measured.document) for teacher, measured in targets.items()},
        rows=len(rows_N),
        rows_digest=rows_digest(rows_N),
        steps=optimizer.epochs * mixture.steps,
    )
    store.create(MANIFEST, manifest.to_bytes())
    return Frozen(manifest, statistics or None, targets)


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


def _targets(
    store: LocalStore,
    manifest: StudentManifest,
    teacher: str,
    training: Sequence[Rows],
    classifier: Classifier | None,
) -> Measured:
    """What was frozen of a teacher's targets; measured again where a file is gone, if that gives the same."""
    try:
        found = read(store, teacher)
    except FileNotFoundError:
        found = measure(teacher, training, needed(manifest.definition.config.loss, teacher), classifier)
        if digest_of(found.document) == manifest.targets[teacher]:
            write(store, teacher, found)
    if digest_of(found.document) != manifest.targets[teacher]:
        raise StageError(
            f"{store.path(document_key(teacher))} is not what student {manifest.name} began with.",
            f"Restore it, or start again: mv {store.root} {store.root}.old",
        )
    return found


def _merge(teacher: str, training: Sequence[Rows], definition: StudentDefinition) -> StatisticsDocument:
    views, tokens = range(definition.views), trained_tokens(definition.config)
    patch_views = None if definition.patch_views is None else range(definition.patch_views)
    taught = [
        (rows.source, blocks)
        for rows, (_, blocks) in zip(training, definition.datasets, strict=True)
        if teacher in rows.source.caches
    ]
    documents = [merge_statistics(s.caches[teacher].folder, views, n, tokens, patch_views) for s, n in taught]
    return mixed_statistics(documents, [source.share for source, _ in taught])


def _key(teacher: str) -> str:
    return f"statistics/{teacher}.json"
