"""What a normaliser or a loss needs to know of a teacher's targets beside exact moments: computed when training starts.

PHI-S's rotation comes from the covariance of tokens, the angle loss's dispersion from their angles to their mean direction,
ND's class means from labels. None is in a cache's records. Class means are those of all usable rows in view 0. The others
are taken from a sample of the decoded cache by a fixed rule: of view 0, in all
`ROWS` rows (enough of either token type for a covariance of 2,000 dimensions), shared out to the datasets of a mixture by
how often their rows are seen, but to those on which the teacher does not teach; of a dataset at most `BLOCKS` blocks, evenly
spaced among those with usable rows, and of each block its first usable rows, the same part of all.

Shapes: N usable rows, D dimensions, M tokens of a block's rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.class_means import ClassMeans
from unic_pipe.pipeline.cache.covariance import Comoments
from unic_pipe.pipeline.cache.directions import Dispersion, MeanDirection
from unic_pipe.pipeline.cache.moments import Doubles
from unic_pipe.pipeline.cache.phi_s import phi_s
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.pipeline.workspace.targets import (
    array_digests,
    array_to_bytes,
    class_means_key,
    classifier_key,
    document_key,
    read_array,
    read_document,
    rotation_key,
)
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.losses import KINDS, LossConfig, TokenType
from unic_pipe.schemas.students import TargetStatistics
from unic_pipe.stages.distill.data.rows import Rows

ROWS: dict[TokenType, int] = {"cls": 8192, "patch": 1024}
BLOCKS = 64


@dataclass(frozen=True)
class Needed:
    """The token types of a teacher for which something has to be known."""

    rotations: tuple[TokenType, ...]
    dispersions: tuple[TokenType, ...]
    class_means: tuple[TokenType, ...]
    classifiers: tuple[TokenType, ...]
    queues: tuple[TokenType, ...]
    """Nothing is measured for these."""

    def __bool__(self) -> bool:
        return bool(self.rotations or self.dispersions or self.class_means or self.classifiers)


def needed(loss: LossConfig, teacher: str) -> Needed:
    """What a loss needs to know of a teacher's targets."""
    terms = loss.terms_of(teacher)

    def tokens(need: str) -> tuple[TokenType, ...]:
        return tuple(token for token, kinds in terms.items() if any(KINDS[kind].needs == need for kind in kinds))

    return Needed(
        rotations=tuple(token for token in terms if loss.normaliser(token) == "phi_s"),
        dispersions=tokens("dispersion"),
        class_means=tokens("centers"),
        classifiers=tokens("logits"),
        queues=tokens("queue"),
    )


@dataclass(frozen=True)
class Measured:
    """What is known of a teacher's targets."""

    document: TargetStatistics
    rotations: Mapping[TokenType, NDArray[np.float64]]
    """(D, D): a target is the standardized token times its transpose."""
    class_means: Mapping[TokenType, NDArray[np.float64]] = field(default_factory=dict)
    """(C, D), of the features themselves; zeros where a class has no usable row."""
    classifiers: Mapping[TokenType, NDArray[np.float64]] = field(default_factory=dict)
    """(C, D + 1), of the features themselves: weights, and biases in the last column."""


def measure(
    teacher: str, training: Sequence[Rows], wanted: Needed, classifier: Callable[[str], Doubles] | None = None
) -> Measured:
    """Measure a teacher's targets, in float64. `classifier`: gives a teacher's, where one is wanted.

    Raises:
        StageError: features of the sample are missing or damaged.
        UserError: all tokens are the same, or point the same way; the teacher has no classifier of its cls.
    """
    rotations, dispersions = {}, {}
    for token in wanted.rotations:
        moments: Comoments | None = None
        for values_MD in sample(teacher, token, training):
            moments = moments or Comoments(values_MD.shape[1])
            moments.add(values_MD)
        assert moments is not None, "there are at least as many rows as in a batch"
        found = phi_s(moments.mean_D, moments.covariance())
        rotations[token] = found.matrix_DD / found.phi
    for token in wanted.dispersions:
        dispersions[token] = _dispersion(teacher, token, training)
    rows = {token: ROWS[token] for token in ROWS if token in (*wanted.rotations, *wanted.dispersions)}
    means = {token: _class_means(teacher, token, training) for token in wanted.class_means}
    classifiers: dict[TokenType, Doubles] = {}
    if wanted.classifiers:
        assert classifier is not None, "given with a job whose loss is about logits"
        classifiers = dict.fromkeys(wanted.classifiers, classifier(teacher))
    document = TargetStatistics(
        rows=rows,
        dispersions=dispersions,
        rotations=_digests(rotations),
        class_means=_digests(means),
        classifiers=_digests(classifiers),
    )
    return Measured(document, rotations, means, classifiers)


def write(store: LocalStore, teacher: str, measured: Measured) -> None:
    """Freeze it in a student's folder; the document, last."""
    for token, rotation_DD in measured.rotations.items():
        store.put(rotation_key(teacher, token), array_to_bytes(rotation_DD))
    for token, means_CD in measured.class_means.items():
        store.put(class_means_key(teacher, token), array_to_bytes(means_CD))
    for token, classifier_CD in measured.classifiers.items():
        store.put(classifier_key(teacher, token), array_to_bytes(classifier_CD))
    store.put(document_key(teacher), measured.document.to_bytes())


def read(store: LocalStore, teacher: str) -> Measured:
    """What was frozen.

    Raises:
        FileNotFoundError: a file is gone.
        StageError: one is not what was written.
    """
    document = read_document(store, teacher)
    found = {key: read_array(store, key, digest) for key, digest in array_digests(teacher, document).items()}
    rotations = {token: found[rotation_key(teacher, token)] for token in document.rotations}
    means = {token: found[class_means_key(teacher, token)] for token in document.class_means}
    classifiers = {token: found[classifier_key(teacher, token)] for token in document.classifiers}
    return Measured(document, rotations, means, classifiers)


def _dispersion(teacher: str, token: TokenType, training: Sequence[Rows]) -> float:
    mean: MeanDirection | None = None
    for values_MD in sample(teacher, token, training):
        mean = mean or MeanDirection(values_MD.shape[1])
        mean.add(values_MD)
    assert mean is not None, "there are at least as many rows as in a batch"
    spread = Dispersion(mean.direction())
    for values_MD in sample(teacher, token, training):
        spread.add(values_MD)
    if not spread.squared() > 0:
        raise UserError(
            f"All {token} tokens of teacher {teacher} point the same way, so the angle loss has no scale.",
            "Take it out of the student's teachers, or use cosine.",
        )
    return spread.squared()


def _class_means(teacher: str, token: TokenType, training: Sequence[Rows]) -> Doubles:
    (rows,) = training  # a student of several datasets has no such term
    dataset, cache = rows.source.dataset, rows.source.caches[teacher]
    label_by_row = dataset.labels_by_row()
    means = ClassMeans(int(label_by_row.max()) + 1, cache.dims[token])
    blocks, firsts = np.unique(rows.rows_N // dataset.block_rows, return_index=True)
    for block, rows_M in zip(blocks.tolist(), np.split(rows.rows_N, firsts[1:]), strict=True):
        means.add(cache.read_block(0, token, block).values[rows_M % dataset.block_rows], label_by_row[rows_M])
    return means.means()


def sample(teacher: str, token: TokenType, training: Sequence[Rows]) -> Iterator[Doubles]:
    """Tokens of the sample, (M, D) float64 a block."""
    taught = [rows for rows in training if teacher in rows.source.caches]
    blocks = [_blocks(rows) for rows in taught]
    held = [sum(map(len, mine)) for mine in blocks]
    seen = [rows.source.share * len(rows.rows_N) for rows in taught]
    # No more than what leaves every dataset its part.
    wanted = min(ROWS[token], *(count * sum(seen) / mine for count, mine in zip(held, seen, strict=True)))
    for rows, mine, theirs, count in zip(taught, seen, blocks, held, strict=True):
        block_rows, cache = rows.source.dataset.block_rows, rows.source.caches[teacher]
        part = wanted * mine / sum(seen) / count
        for rows_M in theirs:
            here_M = rows_M[: max(1, round(part * len(rows_M)))]
            values = cache.read_block(0, token, int(here_M[0]) // block_rows).values[here_M % block_rows]
            yield values.reshape(-1, values.shape[-1]).astype(np.float64)


def _blocks(rows: Rows) -> list[NDArray[np.int64]]:
    """Usable rows of the blocks that are looked at, block by block."""
    block_N = rows.rows_N // rows.source.dataset.block_rows
    usable = np.unique(block_N)
    count = min(BLOCKS, len(usable))
    return [rows.rows_N[block_N == block] for block in usable[np.arange(count) * len(usable) // count]]


def _digests(arrays: Mapping[TokenType, Doubles]) -> dict[TokenType, str]:
    return {token: sha256(array_to_bytes(array)) for token, array in arrays.items()}
