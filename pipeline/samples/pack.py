"""Writing an indexed folder of images as WebDataset tars, with webdataset's own writer; the images' bytes are unchanged.

Rows keep their order and keys, so that the packed dataset has the identity of the folder: features made from one are
features of the other. Equal input gives equal tars; each tar appears whole or not at all, and a second run goes on.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from unic_pipe.pipeline.process.progress import Reporter, SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore, sync_folder
from unic_pipe.schemas.base import canonical_json
from unic_pipe.schemas.errors import StageError, UserError

SHARD_BYTES = 256 << 20
_BLOCK, _RECORD = 512, 10_240
_MTIME = 1_420_070_400
"""2015-01-01: a fixed time, so that equal data give equal tars."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote, or found written."""

    pattern: str
    """`source` of the packed dataset, relative to its folder."""
    shards: int
    written: int
    """Tars written by this run."""
    rows: int
    bytes: int


@dataclass(frozen=True)
class _Plan:
    names: list[str]
    """Member names without their extension, by position."""
    cuts: list[int]
    """Positions at which tars begin, and the end."""
    sizes: list[int]
    """Bytes of each tar."""


def pack(
    dataset: Dataset,
    destination: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Reporter | None = None,
    stop: Stop | None = None,
) -> Packed:
    """Write a dataset of class folders or of a flat folder as `<name>-000000.tar` ... in `destination`.

    Raises:
        UserError: the source is tars already; the folder holds tars of other data; a name that a tar cannot hold.
        StageError: too little disk space; an image that is not what was indexed.
    """
    if dataset.manifest.layout == "tars":
        raise UserError(f"dataset {dataset.manifest.name}: its source is tars already.", "There is nothing to pack.")
    reporter, name = progress or SilentReporter(), dataset.manifest.name
    plan = _plan(dataset, shard_bytes)
    paths = [destination / f"{name}-{number:06d}.tar" for number in range(len(plan.sizes))]
    _claim(dataset, destination, shard_bytes)
    todo = [i for i, path in enumerate(paths) if not path.exists() or path.stat().st_size != plan.sizes[i]]
    _expect_space(destination, sum(plan.sizes[i] for i in todo))
    total = plan.cuts[-1]
    finished = total - sum(plan.cuts[i + 1] - plan.cuts[i] for i in todo)
    rows, labels = dataset.rows(), dataset.labels()
    written = 0
    with reporter.task(f"packing {name}", total=total, done=finished) as task:
        for i in todo:
            if stop is not None and stop.requested:
                break
            span = range(plan.cuts[i], plan.cuts[i + 1])
            _write_shard(destination, name, i, _samples(dataset, plan, span, rows, labels))
            written += 1
            task.advance(len(span))
    return Packed(f"{name}-*.tar", len(paths), written, total, sum(plan.sizes))


def _plan(dataset: Dataset, shard_bytes: int) -> _Plan:
    """Cut rows into tars by the bytes that they take there (headers and padding included)."""
    names = [_member_stem(key) for block in range(dataset.blocks) for key in dataset.block_keys(block)]
    if len(set(names)) != len(names):
        twice = next(a for a, b in zip(sorted(names), sorted(names)[1:], strict=False) if a == b)
        raise UserError(
            f"dataset {dataset.manifest.name}: two images would become {twice!r} in the tars "
            "(dots in file names become _).",
            "Rename one of them and index again.",
        )
    sizes = np.concatenate([segment.sizes for segment in dataset.segments])
    taken_N = _BLOCK + -(-sizes // _BLOCK) * _BLOCK + np.where(dataset.labels() < 0, 0, 2 * _BLOCK)
    cuts, used, totals = [0], 0, []
    for position, taken in enumerate(taken_N.tolist()):
        if used and used + taken > shard_bytes:
            totals.append(used)
            cuts.append(position)
            used = 0
        used += taken
    totals.append(used)
    cuts.append(len(names))
    return _Plan(names, cuts, [-(-(used + 2 * _BLOCK) // _RECORD) * _RECORD for used in totals])


def _member_stem(key: str) -> str:
    folder, slash, base = key.rpartition("/")
    stem = folder + slash + base.replace(".", "_")
    encoded = len(stem.encode())
    if encoded > 90 and (len((folder + slash).encode()) > 155 or len(base.encode()) > 90):
        raise UserError(f"The name {key!r} is too long for a tar.", "Rename the file and index again.")
    return stem


def _claim(dataset: Dataset, destination: Path, shard_bytes: int) -> None:
    """Take the folder for this dataset, once; tars of other data are never mixed with it."""
    name = f"{dataset.manifest.name}.pack.json"
    rows = [segment.rows_digest for segment in dataset.manifest.segments]
    labels = [segment.labels_digest for segment in dataset.manifest.segments]
    claim = canonical_json({"rows": rows, "labels": labels, "shard_bytes": shard_bytes}) + b"\n"
    store = LocalStore(destination)
    if store.size(name) is None and any(destination.glob(f"{dataset.manifest.name}-*.tar")):
        raise UserError(
            f"{destination} already holds {dataset.manifest.name}-*.tar that were not packed here.",
            "Choose an empty folder.",
        )
    if not store.create(name, claim) and store.get(name) != claim:
        raise UserError(
            f"{destination} holds tars that were packed from other data or with another shard size ({name}).",
            "Choose an empty folder, or remove those tars and that file.",
        )


def _expect_space(destination: Path, needed: int) -> None:
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise StageError(
            f"{destination}: the tars need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free.",
            "Choose a folder on a larger disk.",
        )


def _samples(
    dataset: Dataset, plan: _Plan, span: range, rows: np.ndarray, labels: np.ndarray
) -> Iterator[dict[str, str | bytes]]:
    for position in span:
        row, label = int(rows[position]), int(labels[position])
        extension = dataset.shard(row).rpartition(".")[2].lower()
        sample: dict[str, str | bytes] = {"__key__": plan.names[position], extension: dataset.read(row)}
        if label >= 0:
            sample["cls"] = str(label).encode()
        yield sample


def _write_shard(destination: Path, name: str, number: int, samples: Iterator[dict[str, str | bytes]]) -> None:
    from webdataset import ShardWriter

    final = destination / f"{name}-{number:06d}.tar"
    temporary = final.with_name(f".{final.name}.part")
    handle: IO[bytes] = temporary.open("wb")
    try:
        writer = ShardWriter(
            f"{name}-%06d.tar",
            maxcount=1 << 62,
            maxsize=1 << 62,
            start_shard=number,
            verbose=0,
            opener=lambda _: handle,
            encoder=False,
            mtime=_MTIME,
        )
        for sample in samples:
            writer.write(sample)
        writer.close()
        handle.flush()
        os.fsync(handle.fileno())
        handle.close()
        os.replace(temporary, final)
    finally:
        handle.close()
        temporary.unlink(missing_ok=True)
    sync_folder(destination)
