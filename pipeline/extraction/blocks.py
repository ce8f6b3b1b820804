"""Running encoders over blocks: read and decode once, render each view, encode with every encoder, commit each unit.

Memory of a process: `crew.blocks_in_flight` blocks, each with at most `sizes.VIEWS_AT_ONCE` views as uint8 pixels (38 MB
for 256 rows at 224 pixels) and the float32 features of two encoders, one being computed while the other is written
(155 MB each for ViT-B tokens); on an accelerator of a third, which is next.

Shapes: N rows of a block, P patch tokens, D dimensions, H and W pixels.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.commit import commit_unit
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.forward import (
    STAGES,
    EncoderRun,
    Plane,
    ViewFeatures,
    features_of_rows,
    loaded_encoder,
    pick_device,
)
from unic_pipe.pipeline.extraction.unusable import NON_FINITE
from unic_pipe.pipeline.process.crew import crew_of, results
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset, open_dataset
from unic_pipe.pipeline.samples.places import Root
from unic_pipe.pipeline.storage import Store, Version
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import BadRow, UnitRecord

__all__ = [
    "BlockResult", "BlockTask", "EncoderJob", "ExtractJob", "Plane", "UsableRows", "commit_features", "pick_device",
    "run_block", "usable_rows",
]  # fmt: skip


@dataclass(frozen=True)
class EncoderJob:
    """One encoder, the features it must write, and where."""

    encoder: ResolvedEncoder
    need: FeatureNeed
    folder: Store


@dataclass(frozen=True)
class ExtractJob:
    """Everything a worker needs, small enough to send: paths and definitions, no models and no data."""

    dataset: Store
    roots: tuple[Root, ...]
    encoders: tuple[EncoderJob, ...]
    device: str
    batch: int
    """Images per forward pass; the definition's unless a smaller one was forced."""


@dataclass(frozen=True)
class BlockTask:
    """The units of one block that are missing: for each encoder (by position) its planes."""

    block: int
    planes: tuple[tuple[Plane, ...], ...]


@dataclass(frozen=True)
class BlockResult:
    """What became of a block: image-forwards made, rows that cannot be used, seconds per `forward.STAGES`."""

    block: int
    forwards: int
    bad: tuple[BadRow, ...] = field(default=())
    seconds: dict[str, float] = field(default_factory=dict)


def run_block(job: ExtractJob, task: BlockTask, cores: int, stop: Stop | None = None) -> BlockResult:
    """Extract and commit the missing units of one block. Idempotent: doing it twice writes the same bytes.

    The pieces of the block run on `cores` threads, which the blocks of a process share; `job.device` is a real device,
    not `auto`. While the features of one view and encoder are written, the next ones are made.

    Raises:
        StageError: samples that are not what was indexed, device out of memory, disk full.
        Stopped: `stop` was requested; the units that were finished before are kept.
    """
    dataset = _dataset(job.dataset, job.roots, job.dataset.version("manifest.json"))
    first, count = dataset.block_range(task.block)
    todo = _still_missing(job, task, dataset.block_digest(task.block))
    keep = {e.encoder.digest for e in job.encoders}
    runs = []
    for e, planes in todo:
        encoder = loaded_encoder(e.encoder, job.device, e.need.definition.compute.channels_last, keep)
        runs.append(EncoderRun.of(encoder, e.need.definition, planes))
    crew = crew_of(cores, job.encoders[0].need.definition.compute.threads, job.device != "cpu")
    clock = Stopwatch(names=STAGES)
    bad: dict[int, BadRow] = {}
    writing: list[Future[dict[int, BadRow]]] = []
    forwards = 0

    def finish_writing() -> None:
        with clock.time("write"):
            written, writing[:] = list(writing), []
            for unusable in results(written):
                bad.update(unusable)

    try:
        for found in features_of_rows(dataset, range(first, first + count), runs, job.batch, crew, clock, stop):
            finish_writing()
            bad |= found.unreadable
            forwards += count - len(found.unreadable)
            folder = _folder(todo[found.run][0].folder)
            writing += [
                crew.start_writing(_commit, folder, dataset, task.block, found, token, job.batch)
                for token in found.features
            ]
    finally:
        finish_writing()
    return BlockResult(task.block, forwards, tuple(bad[offset] for offset in sorted(bad)), clock.seconds)


def _still_missing(job: ExtractJob, task: BlockTask, rows_digest: str) -> list[tuple[EncoderJob, tuple[Plane, ...]]]:
    """The encoders with the planes that no other process has committed since the task was planned."""

    def missing(encoder_job: EncoderJob, plane: Plane) -> bool:
        record = _folder(encoder_job.folder).record(*plane, task.block)
        return record is None or record.rows != rows_digest

    pairs = zip(job.encoders, task.planes, strict=True)
    found = [(e, tuple(plane for plane in planes if missing(e, plane))) for e, planes in pairs]
    return [(e, planes) for e, planes in found if planes]


class UsableRows(NamedTuple):
    """Features of a whole block, with zeros in rows that have none, and those rows by offset."""

    values: NDArray[np.float32]
    valid_N: NDArray[np.bool_]
    bad: dict[int, BadRow]


def usable_rows(dataset: Dataset, block: int, found: ViewFeatures, token: TokenType) -> UsableRows:
    """A token type's features of a block, without the rows that have no image or non-finite features."""
    values, keys = found.features[token], dataset.block_keys(block)
    bad, valid_N = dict(found.unreadable), np.ones(len(keys), bool)
    if bad:
        valid_N[list(bad)] = False
        spread = np.zeros((len(keys), *values.shape[1:]), np.float32)
        spread[valid_N] = values
        values = spread
    finite_N = np.isfinite(values).reshape(len(keys), -1).all(axis=1)
    if not finite_N.all():
        for offset in np.flatnonzero(~finite_N).tolist():
            bad[offset] = BadRow(offset=offset, key=keys[offset], reason=f"{NON_FINITE} {token} feature")
        valid_N &= finite_N
        values[~valid_N] = 0.0
    return UsableRows(values, valid_N, dict(sorted(bad.items())))


def commit_features(
    folder: FeatureFolder, dataset: Dataset, block: int, view: int, token: TokenType, rows: UsableRows, batch: int
) -> UnitRecord:
    """Commit a unit of a block (`commit_unit`), made in batches of `batch` rows."""
    digest = dataset.block_digest(block)
    bad = tuple(rows.bad.values())
    return commit_unit(folder, view, token, block, rows.values, rows.valid_N, bad, rows_digest=digest, batch=batch)


def _commit(
    folder: FeatureFolder, dataset: Dataset, block: int, found: ViewFeatures, token: TokenType, batch: int
) -> dict[int, BadRow]:
    """Commit a unit; the rows of it that cannot be used."""
    rows = usable_rows(dataset, block, found, token)
    commit_features(folder, dataset, block, found.view, token, rows, batch)
    return rows.bad


@lru_cache(maxsize=8)
def _dataset(index: Store, roots: tuple[Root, ...], version: Version | None) -> Dataset:
    """The dataset, opened again when its index has grown since."""
    del version
    return open_dataset(index, roots)


@lru_cache(maxsize=64)
def _folder(store: Store) -> FeatureFolder:
    return FeatureFolder(store)
