"""Running encoders over blocks: read and decode once, render each view, encode with every encoder, commit each unit.

Memory of a process: `pieces.blocks_in_flight` blocks, each with at most `VIEWS_AT_ONCE` views as uint8 pixels (38 MB
for 256 rows at 224 pixels) and the float32 features of two encoders, one being computed while the other is written
(155 MB each for ViT-B tokens).

Shapes: N rows of a block, P patch tokens, D dimensions, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pipeline.cache.commit import commit_unit
from pipeline.cache.records import FeatureFolder
from pipeline.encoders import ResolvedEncoder
from pipeline.features import FeatureNeed
from pipeline.forward import Features, encode_block, encode_images, loaded_encoder, pick_device
from pipeline.pieces import Crew, Stopwatch, crew_of, results
from pipeline.rendering import Rendering, render_block
from pipeline.samples.dataset import Dataset, open_dataset
from pipeline.samples.places import Root
from pipeline.storage import Store, Version
from schemas.config import TokenType
from schemas.features import BadRow

__all__ = ["BlockResult", "BlockTask", "EncoderJob", "ExtractJob", "Plane", "encode_images", "pick_device", "run_block"]

VIEWS_AT_ONCE = 4
"""Views that are rendered from one decoding of a block; bounds memory when there are many."""

Plane = tuple[int, TokenType]
"""(view, token type): with a block, the coordinates of a unit."""


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
    """What became of a block: rows read, image-forwards made, rows that cannot be used, seconds per `pieces.STAGES`."""

    block: int
    rows: int
    forwards: int
    bad: tuple[BadRow, ...] = field(default=())
    seconds: dict[str, float] = field(default_factory=dict)


def run_block(job: ExtractJob, task: BlockTask, cores: int) -> BlockResult:
    """Extract and commit the missing units of one block. Idempotent: doing it twice writes the same bytes.

    The pieces of the block run on `cores` threads, which the blocks of a process share; `job.device` is a real device,
    not `auto`.

    Raises:
        StageError: samples that are not what was indexed, device out of memory, disk full.
    """
    dataset = _dataset(job.dataset, job.roots, job.dataset.version("manifest.json"))
    task = _still_missing(job, task, dataset.block_digest(task.block))
    crew = crew_of(cores, job.encoders[0].need.definition.compute.threads, job.device != "cpu")
    work = _Block(job, task, dataset, crew)
    views = sorted({view for planes in task.planes for view, _ in planes})
    try:
        for start in range(0, len(views), VIEWS_AT_ONCE):
            work.extract(views[start : start + VIEWS_AT_ONCE])
    finally:
        work.finish_writing()
    bad = tuple(work.bad[offset] for offset in sorted(work.bad))
    return BlockResult(task.block, work.count, work.forwards, bad, work.clock.seconds)


class _Block:
    """A block in the making: while one encoder's features are written, the next encoder runs."""

    def __init__(self, job: ExtractJob, task: BlockTask, dataset: Dataset, crew: Crew) -> None:
        self.job, self.task, self.dataset, self.crew = job, task, dataset, crew
        self.count = dataset.block_range(task.block)[1]
        self.clock = Stopwatch()
        self.bad: dict[int, BadRow] = {}
        self.forwards = 0
        self._writing: list[Future[dict[int, BadRow]]] = []

    def extract(self, views: Sequence[int]) -> None:
        """Render some views, run every encoder that misses something of them, and start writing what comes out."""
        job, task = self.job, self.task
        with self.clock.time("render"):
            pinned = job.device.startswith("cuda")
            pixels, unreadable = render_block(
                self.crew, self.dataset, task.block, _renderings(job, task, views), pinned
            )
        self.bad |= unreadable
        keep = {e.encoder.digest for e in job.encoders}
        for view in views:
            for encoder_job, planes in zip(job.encoders, task.planes, strict=True):
                tokens = tuple(token for v, token in planes if v == view)
                if not tokens:
                    continue
                views_N, compute = pixels[_rendering(encoder_job, view)], encoder_job.need.definition.compute
                encoder = loaded_encoder(encoder_job.encoder, job.device, compute.channels_last, keep)
                features = encode_block(self.crew, self.clock, encoder, compute, job.device, job.batch, views_N)
                self.forwards += len(views_N)
                self.finish_writing()
                rows = _Rows(self.dataset, task.block, self.count, unreadable)
                self._writing = [
                    self.crew.start_writing(_commit, job, encoder_job, rows, view, token, features) for token in tokens
                ]

    def finish_writing(self) -> None:
        """Wait until everything that was started is committed."""
        writing, self._writing = self._writing, []
        with self.clock.time("write"):
            for found in results(writing):
                self.bad |= found


def _still_missing(job: ExtractJob, task: BlockTask, rows_digest: str) -> BlockTask:
    """The task without units that another process has committed since it was planned."""

    def missing(encoder_job: EncoderJob, plane: Plane) -> bool:
        record = _folder(encoder_job.folder).record(*plane, task.block)
        return record is None or record.rows != rows_digest

    pairs = zip(job.encoders, task.planes, strict=True)
    return BlockTask(task.block, tuple(tuple(p for p in planes if missing(e, p)) for e, planes in pairs))


def _rendering(job: EncoderJob, view: int) -> Rendering:
    definition = job.need.definition
    return definition.recipe, definition.view_seed, definition.encoder.image_size, view, definition.compute.views


def _renderings(job: ExtractJob, task: BlockTask, views: Sequence[int]) -> list[Rendering]:
    pairs = zip(job.encoders, task.planes, strict=True)
    return list({_rendering(e, view): None for e, planes in pairs for view, _ in planes if view in views})


@dataclass(frozen=True)
class _Rows:
    """The rows of a block, and which of them have no image."""

    dataset: Dataset
    block: int
    count: int
    unreadable: dict[int, BadRow]


def _commit(
    job: ExtractJob, encoder_job: EncoderJob, rows: _Rows, view: int, token: TokenType, features: Features
) -> dict[int, BadRow]:
    """Commit a unit; rows without an image or with non-finite features are marked invalid."""
    values, valid = features[token], np.ones(rows.count, bool)
    if rows.unreadable:
        valid[list(rows.unreadable)] = False
        spread = np.zeros((rows.count, *values.shape[1:]), np.float32)
        spread[valid] = values
        values = spread
    finite = np.isfinite(values).reshape(rows.count, -1).all(axis=1)
    keys = rows.dataset.block_keys(rows.block)
    bad = dict(rows.unreadable)
    for offset in np.flatnonzero(~finite).tolist():
        bad[offset] = BadRow(offset=offset, key=keys[offset], reason=f"non-finite {token} feature")
    if not finite.all():
        valid &= finite
        values[~valid] = 0.0
    commit_unit(
        _folder(encoder_job.folder), view, token, rows.block, values, valid,
        bad=tuple(bad[o] for o in sorted(bad)),
        rows_digest=rows.dataset.block_digest(rows.block), batch=job.batch,
    )  # fmt: skip
    return bad


@lru_cache(maxsize=8)
def _dataset(index: Store, roots: tuple[Root, ...], version: Version | None) -> Dataset:
    """The dataset, opened again when its index has grown since."""
    del version
    return open_dataset(index, roots)


@lru_cache(maxsize=64)
def _folder(store: Store) -> FeatureFolder:
    return FeatureFolder(store)
