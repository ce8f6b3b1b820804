"""What is frozen in a student's folder of its teachers' targets, beside exact statistics. Free of torch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.losses import TokenType
from unic_pipe.schemas.students import StudentManifest, TargetStatistics


def document_key(teacher: str) -> str:
    """Where a teacher's `TargetStatistics` are, in the student's folder."""
    return f"statistics/targets/{teacher}.json"


def rotation_key(teacher: str, token: TokenType) -> str:
    """Where a rotation that the document names is: (D, D) float64 in NumPy's format."""
    return f"statistics/targets/{teacher}.{token}.npy"


def class_means_key(teacher: str, token: TokenType) -> str:
    """Where the means by class that the document names are: (C, D) float64 in NumPy's format."""
    return f"statistics/targets/{teacher}.{token}.classes.npy"


def classifier_key(teacher: str, token: TokenType) -> str:
    """Where the classifier that the document names is: weights and, in a last column, biases, (C, D + 1) float64."""
    return f"statistics/targets/{teacher}.{token}.classifier.npy"


def array_digests(teacher: str, document: TargetStatistics) -> dict[str, str]:
    """SHA-256 of every array that a document names, by key."""
    rotations = {rotation_key(teacher, token): digest for token, digest in document.rotations.items()}
    means = {class_means_key(teacher, token): digest for token, digest in document.class_means.items()}
    return rotations | means | {classifier_key(teacher, t): digest for t, digest in document.classifiers.items()}


def read_document(store: LocalStore, teacher: str) -> TargetStatistics:
    """What is frozen of a teacher's targets. Raises FileNotFoundError, DamagedError."""
    key = document_key(teacher)
    return TargetStatistics.from_bytes(store.get(key), str(store.path(key)))


def read_array(store: LocalStore, key: str, digest: str) -> NDArray[np.float64]:
    """A frozen array.

    Raises:
        FileNotFoundError: it is gone.
        StageError: it is not what was written.
    """
    raw = store.get(key)
    if sha256(raw) != digest:
        raise StageError(
            f"{store.path(key)}, which was measured of a teacher's targets, is not what was written.",
            f"Restore it, or start again: mv {store.root} {store.root}.old",
        )
    array: NDArray[np.float64] = np.load(io.BytesIO(raw), allow_pickle=False)
    return array


def array_to_bytes(array: NDArray[np.float64]) -> bytes:
    """NumPy's format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def frozen_rotation(
    manifest: StudentManifest, folder: Path, teacher: str, token: TokenType
) -> NDArray[np.float64] | None:
    """The rotation with which a student was trained; None: there is none.

    Raises:
        StageError: it is gone, or not what was written.
    """
    if teacher not in manifest.targets:
        return None
    store = LocalStore(folder)
    try:
        document = read_document(store, teacher)
        if digest_of(document) == manifest.targets[teacher]:
            digest = document.rotations.get(token)
            return None if digest is None else read_array(store, rotation_key(teacher, token), digest)
    except FileNotFoundError:
        pass
    raise StageError(
        f"{store.path(document_key(teacher))}: what student {manifest.name} was trained with is gone or another document.",
        f"Restore it, or train it again: mv {folder} {folder}.old; unic-pipe distill --student {manifest.name}",
    )
