"""The embed stage: one encoder's features of any images, through the cache of extraction, into one file.

The cache is a folder of its own beside the file, `.FILE.unic-pipe`, and goes when the file is there: a run that was killed
goes on from it. Memory is that of extraction; rows are in the order of the images.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unic_pipe.pipeline.cache.needs import FeatureNeed, center_need
from unic_pipe.pipeline.cache.outfiles import WRITERS, Rows
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.encoders.summary import sentence
from unic_pipe.pipeline.extraction.run import ExtractOptions, ExtractPass, extract_features
from unic_pipe.pipeline.extraction.unusable import unusable_rows
from unic_pipe.pipeline.process.progress import Reporter, human_bytes
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.plain import Plain, index_images
from unic_pipe.pipeline.samples.scan import IndexingStopped
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.local import sync_folder
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.storage.targets import require_target
from unic_pipe.schemas.base import PROGRAM_VERSION
from unic_pipe.schemas.config import Config, SamplesConfig, TokenType
from unic_pipe.schemas.errors import StageError, UserError

BLOCK_ROWS = {"cls": 256, "patch": 64}
"""Rows that are in memory together: fewer where patch tokens are."""
_SHOWN = 20


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    path: Path
    rows: int
    shapes: Mapping[TokenType, tuple[int, ...]]
    """Of one row."""
    bytes: int
    left_out: Mapping[str, str]
    """Keys of images without features, and why; they are no rows."""


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse early what would fail at the end.
    Raises UserError: another ending than the formats', no such folder, or the file is there."""
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: the ending says which format it gets.", f"End it with {', '.join(WRITERS)}.")
    require_target(path, overwrite)


def embed(
    encoder: ResolvedEncoder,
    images: Plain,
    target: Path,
    tokens: Sequence[TokenType],
    options: ExtractOptions,
    reporter: Reporter,
    stop: Stop,
    overwrite: bool = False,
) -> Embedded | None:
    """Write the features of the images' centre crops to a file, whole or not at all; None after a stop.

    Images that cannot be read, and rows with features that are not finite, are left out and listed: there is no NaN.

    Raises:
        UserError: none of the images can be used; a file that is there already, or has another ending.
        StageError: disk too small or full, device out of memory, another process writes the same file.
    """
    target = target.expanduser().absolute()
    check_target(target, overwrite)
    scratch = LocalStore(target.with_name(f".{target.name}.unic-pipe"))
    with exclusive(scratch.path("lock"), f"An extraction to {target}"):
        block_rows = min(BLOCK_ROWS[token] for token in tokens)
        try:
            dataset = index_images(images, scratch.child("samples"), block_rows, reporter, stop)
        except IndexingStopped:
            return None
        need = center_need(_CONFIG, dataset.manifest, encoder.name, encoder.definition, tuple(tokens))
        _check_room(need, dataset.manifest.rows, scratch, target)
        work = ExtractPass(
            workdir=scratch.root,
            features=scratch.child("features"),
            dataset=dataset,
            jobs=[(need, encoder)],
            blocks=dataset.blocks,
            max_bad_fraction=1.0,
            title=f"embed {images.text} ({encoder.name})",
        )
        reporter.say(f"{encoder.name}: {sentence(encoder)}")
        extract_features(work, replace(options, force=True), reporter, stop)
        if stop.requested:
            return None
        cache = FeatureCache(scratch.child("features").child(need.folder_name))
        rows = Rows(cache, dataset, tuple(tokens))
        left_out = unusable_rows(cache.folder, need, dataset.blocks)
        _say_left_out(left_out, dataset.manifest.rows, rows.count, reporter)
        about = {
            "encoder": encoder.name,
            "source": encoder.source,
            "licence": encoder.licence,
            "definition": encoder.definition.model_dump(mode="json"),
            "images": images.text,
            "left_out": left_out,
            "version": PROGRAM_VERSION,
        }
        _write(target, scratch.path(f"file{target.suffix}"), rows, about, overwrite)
        shutil.rmtree(scratch.root)
    shapes = {token: cache.shapes[token] for token in tokens}
    return Embedded(target, rows.count, shapes, target.stat().st_size, left_out)


_CONFIG = Config(samples=SamplesConfig(datasets={}))
"""Precision, batch and codec are those of extraction unless a configuration says otherwise."""


def _check_room(need: FeatureNeed, rows: int, scratch: LocalStore, target: Path) -> None:
    """The cache and the file have to fit, less what is cached already."""
    values = rows * sum(math.prod(need.definition.encoder.shape(token)) for token in need.views)
    needed = values * (2 + (4 if target.suffix == ".parquet" else 2)) - sum(scratch.sizes("features").values())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StageError(
            f"Disk too small: cache and file need up to {human_bytes(needed)}, {target.parent} has {human_bytes(free)} free.",
            "Free some space, write to another disk, or do without patch tokens: --tokens cls.",
        )


def _say_left_out(left_out: Mapping[str, str], total: int, usable: int, reporter: Reporter) -> None:
    for key, reason in list(left_out.items())[:_SHOWN]:
        reporter.say(f"left out: {key}: {reason}")
    if len(left_out) > _SHOWN:
        reporter.say(f"left out: {len(left_out) - _SHOWN:,} more; the file's metadata lists all.")
    if not usable:
        key, reason = next(iter(left_out.items()))
        raise UserError(
            f"None of the {total:,} images has features (the first, {key}: {reason}).",
            "Check the images; where features are not finite, the encoder's weights.",
        )


def _write(target: Path, temporary: Path, rows: Rows, about: Mapping[str, object], overwrite: bool) -> None:
    try:
        WRITERS[target.suffix](temporary, rows, about)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
    except OSError as error:
        raise StageError(
            f"Could not write {target}: {error.strerror or error}.",
            "Its features are kept: free some space, then run the same command again.",
        ) from error
    check_target(target, overwrite)
    os.replace(temporary, target)
    sync_folder(target.parent)
