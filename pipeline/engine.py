"""Running encoders over blocks: read and decode once, render each view, encode with every encoder, commit each unit.

Shapes: B images of a batch, N rows of a block, P patch tokens, D dimensions, H and W pixels.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.commit import commit_unit
from pipeline.cache.records import FeatureFolder
from pipeline.encoders import ResolvedEncoder
from pipeline.features import FeatureNeed
from pipeline.samples.dataset import Dataset, open_dataset
from pipeline.samples.images import UndecodableImage, decode_image
from pipeline.samples.places import Root
from pipeline.storage import Store, Version
from schemas.config import TokenType
from schemas.errors import UserError
from schemas.features import BadRow
from schemas.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from pipeline.encoders.encoder import Encoder

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
    """What became of a block: rows read, image-forwards made, rows that cannot be used."""

    block: int
    rows: int
    forwards: int
    bad: tuple[BadRow, ...] = field(default=())


def run_block(job: ExtractJob, task: BlockTask) -> BlockResult:
    """Extract and commit the missing units of one block. Idempotent: doing it twice writes the same bytes.

    Raises:
        StageError: samples that are not what was indexed, device out of memory, disk full.
    """
    import torch

    torch.set_num_threads(job.encoders[0].need.definition.compute.threads)
    dataset = _dataset(job.dataset, job.roots, job.dataset.version("manifest.json"))
    task = _still_missing(job, task, dataset.block_digest(task.block))
    count = dataset.block_range(task.block)[1]
    bad: dict[int, BadRow] = {}
    forwards = 0
    views = sorted({view for planes in task.planes for view, _ in planes})
    for start in range(0, len(views), VIEWS_AT_ONCE):
        some = views[start : start + VIEWS_AT_ONCE]
        rendered, unreadable = _render_block(dataset, task.block, _renderings(job, task, some))
        bad |= unreadable
        for view in some:
            for encoder_job, planes in zip(job.encoders, task.planes, strict=True):
                tokens = tuple(token for v, token in planes if v == view)
                if tokens:
                    x_N3HW = rendered[_rendering(encoder_job, view)]
                    features = encode_images(encoder_job.encoder, encoder_job.need, job.device, job.batch, x_N3HW)
                    forwards += len(x_N3HW)
                    unit_rows = _Rows(dataset, task.block, count, unreadable)
                    bad |= _commit(job, encoder_job, unit_rows, view, tokens, features)
    return BlockResult(task.block, count, forwards, tuple(bad[offset] for offset in sorted(bad)))


def _still_missing(job: ExtractJob, task: BlockTask, rows_digest: str) -> BlockTask:
    """The task without units that another process has committed since it was planned."""

    def missing(encoder_job: EncoderJob, plane: Plane) -> bool:
        record = _folder(encoder_job.folder).record(*plane, task.block)
        return record is None or record.rows != rows_digest

    pairs = zip(job.encoders, task.planes, strict=True)
    return BlockTask(task.block, tuple(tuple(p for p in planes if missing(e, p)) for e, planes in pairs))


Rendering = tuple[Recipe, int, int, int]
"""(recipe, seed, size in pixels, view): encoders with equal renderings share the pixels."""


def _rendering(job: EncoderJob, view: int) -> Rendering:
    definition = job.need.definition
    return definition.recipe, definition.view_seed, definition.encoder.image_size, view


def _renderings(job: ExtractJob, task: BlockTask, views: Sequence[int]) -> list[Rendering]:
    pairs = zip(job.encoders, task.planes, strict=True)
    return list({_rendering(e, view): None for e, planes in pairs for view, _ in planes if view in views})


def _render_block(
    dataset: Dataset, block: int, renderings: Sequence[Rendering]
) -> tuple[dict[Rendering, torch.Tensor], dict[int, BadRow]]:
    """Each rendering of the decodable rows, uint8 (rows, 3, H, W) in row order, and the rows that are not.

    An image is dropped as soon as it is rendered: a block of full-size photographs would not fit in memory.
    """
    import torch

    from pipeline.views.render import render_view

    first, count = dataset.block_range(block)
    keys = dataset.block_keys(block)
    rendered: dict[Rendering, list[torch.Tensor]] = {rendering: [] for rendering in renderings}
    unreadable: dict[int, BadRow] = {}
    for offset, read in enumerate(dataset.read_many(range(first, first + count))):
        try:
            image_HWC = decode_image(read())
        except UndecodableImage as error:
            unreadable[offset] = BadRow(offset=offset, key=keys[offset], reason=f"undecodable: {error}")
            continue
        for recipe, seed, size, view in renderings:
            rendered[recipe, seed, size, view].append(render_view(image_HWC, recipe, seed, keys[offset], view, size))
    none = {size: torch.empty((0, 3, size, size), dtype=torch.uint8) for _, _, size, _ in renderings}
    return {r: torch.stack(x) if x else none[r[2]] for r, x in rendered.items()}, unreadable


def encode_images(
    resolved: ResolvedEncoder, need: FeatureNeed, device: str, batch: int, x_N3HW: torch.Tensor
) -> dict[TokenType, np.ndarray]:
    """cls (rows, D) and patch (rows, P, D) float32; batches are cut inside the given rows."""
    compute = need.definition.compute
    encoder = _encoder(resolved, device, compute.channels_last)
    parts: dict[TokenType, list[np.ndarray]] = {"cls": [], "patch": []}
    for start in range(0, len(x_N3HW), batch):
        # One forward at a time on an accelerator; on a CPU every block has its own thread.
        with _DEVICE_LOCK if device != "cpu" else _NO_LOCK:
            tokens = encoder.encode(x_N3HW[start : start + batch], compute)
        parts["cls"].append(tokens.cls.numpy())
        parts["patch"].append(tokens.patch.numpy())
    definition = need.definition.encoder
    empty: dict[TokenType, tuple[int, ...]] = {
        "cls": (0, definition.cls_dim),
        "patch": (0, definition.grid[0] * definition.grid[1], definition.patch_dim),
    }
    return {t: np.concatenate(p) if p else np.zeros(empty[t], np.float32) for t, p in parts.items()}


@dataclass(frozen=True)
class _Rows:
    """The rows of a block, and which of them have no image."""

    dataset: Dataset
    block: int
    count: int
    unreadable: dict[int, BadRow]


def _commit(
    job: ExtractJob,
    encoder_job: EncoderJob,
    rows: _Rows,
    view: int,
    tokens: Sequence[TokenType],
    features: dict[TokenType, np.ndarray],
) -> dict[int, BadRow]:
    """Commit one unit per token type; rows without an image or with non-finite features are marked invalid."""
    decoded = np.ones(rows.count, bool)
    decoded[list(rows.unreadable)] = False
    keys = rows.dataset.block_keys(rows.block)
    found: dict[int, BadRow] = {}
    for token in tokens:
        values = np.zeros((rows.count, *features[token].shape[1:]), np.float32)
        values[decoded] = features[token]
        finite = np.isfinite(values).reshape(rows.count, -1).all(axis=1)
        bad = dict(rows.unreadable)
        for offset in np.flatnonzero(~finite).tolist():
            bad[offset] = BadRow(offset=offset, key=keys[offset], reason=f"non-finite {token} feature")
        valid = decoded & finite
        values[~valid] = 0.0
        commit_unit(
            _folder(encoder_job.folder), view, token, rows.block, values, valid,
            bad=tuple(bad[o] for o in sorted(bad)),
            rows_digest=rows.dataset.block_digest(rows.block), batch=job.batch,
        )  # fmt: skip
        found |= bad
    return found


class _NoLock:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *details: object) -> None:
        return None


_NO_LOCK = _NoLock()
_DEVICE_LOCK = threading.Lock()
_LOAD_LOCK = threading.Lock()


@lru_cache(maxsize=8)
def _dataset(index: Store, roots: tuple[Root, ...], version: Version | None) -> Dataset:
    """The dataset, opened again when its index has grown since."""
    del version
    return open_dataset(index, roots)


@lru_cache(maxsize=64)
def _folder(store: Store) -> FeatureFolder:
    return FeatureFolder(store)


_encoders: dict[tuple[str, str, bool], Encoder] = {}


def _encoder(resolved: ResolvedEncoder, device: str, channels_last: bool) -> Encoder:
    """The loaded encoder, once per process."""
    import torch

    from pipeline.encoders import load_encoder

    key = (resolved.digest, device, channels_last)
    with _LOAD_LOCK:
        if key not in _encoders:
            encoder = load_encoder(resolved, device=device)
            _encoders[key] = encoder.to(memory_format=torch.channels_last) if channels_last else encoder
        return _encoders[key]


def pick_device(wanted: str) -> str:
    """`auto` becomes `cuda` when there is one, else `cpu`.

    Raises:
        UserError: no such device, or it is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if gpus else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", wanted):
        raise UserError(f"There is no device {wanted!r}.", "Use --device auto, cpu, cuda, cuda:N or mps.")
    if wanted.startswith("cuda") and not gpus:
        raise UserError(
            f"Device {wanted}: PyTorch sees no GPU.",
            "Check nvidia-smi, or use --device cpu (unic-pipe doctor says more).",
        )
    if wanted.startswith("cuda:") and int(wanted[5:]) >= gpus:
        raise UserError(f"Device {wanted}: there are {gpus} GPUs, counted from 0.", "Use --device cuda:0.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device mps: this machine has none.", "Use --device cpu.")
    return wanted
