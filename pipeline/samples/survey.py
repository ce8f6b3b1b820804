"""A quick look at a folder or at tars, for `unic-pipe init`: what is there, about how much, and how long indexing takes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipeline.samples.folders import count_images
from pipeline.samples.labels import DEVKIT_FILE
from pipeline.samples.shards import IMAGE_EXTENSIONS, split_name
from pipeline.samples.sources import SPLITS, Layout, Source, find_source, is_image
from pipeline.samples.tars import open_tar, walk
from schemas.config import DatasetConfig
from schemas.errors import UserError

LOOK_S = 1.0
"""Seconds that each part of a survey may take; beyond it, figures are extrapolated."""
_PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class Survey:
    """What a source holds. Figures are estimates unless `exact`."""

    config: DatasetConfig
    """For `samples.datasets`; `source` and `labels` are relative to `root`."""
    root: Path
    """For `samples.roots`."""
    layout: Layout
    files: int
    """Tars, or images."""
    bytes: int
    rows: int
    classes: int | None
    """Number of class folders, or of classes seen in the tars' first labels; None without labels."""
    exact: bool
    """Whether `rows` was counted."""
    bytes_per_s: float
    """Measured: reading and hashing on this machine."""

    @property
    def seconds(self) -> float:
        """Time that indexing takes, estimated."""
        return self.bytes / self.bytes_per_s


def survey(path: Path) -> Survey:
    """Look at tars (a path with `*` or `{000..146}`, a folder, one tar), class folders or a flat folder of images.

    Raises:
        UserError: nothing there that can be a source.
    """
    path = Path(os.path.abspath(path))
    root, text = path.parent, path.name
    while re.search(r"[*?{\[]", root.name):
        text, root = f"{root.name}/{text}", root.parent
    labels: str | None = None
    source = find_source(path.name, DatasetConfig(source=text), [root])
    if source.layout == "flat-folder":
        found = _devkit_labels(path)
        labels = None if found is None else os.path.relpath(found, root)
    return _measure(source, DatasetConfig(source=text, labels=labels), root)


def survey_splits(path: Path) -> dict[str, Survey]:
    """Datasets below a folder, by name: its `train`, `val`, `test` ... folders or tars (`imagenet1k-train-0001.tar`).

    Without such splits, the folder itself is the one dataset `train`.

    Raises:
        UserError: nothing there that can be a source.
    """
    found: dict[str, Survey] = {}
    if path.is_dir():
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir() and entry.name.lower() in SPLITS:
                found[entry.name.lower()] = survey(Path(entry.path))
        tars = [entry.name for entry in entries if entry.name.lower().endswith(".tar")]
        for split, pattern in ({} if found else _tar_splits(tars)).items():
            found[split] = survey(path / pattern)
    return found or {"train": survey(path)}


def _tar_splits(tars: Sequence[str]) -> dict[str, str]:
    """Split name and pattern of tars whose names differ by split words; empty if any tar has none."""
    patterns: dict[str, str] = {}
    for name in tars:
        words = re.split(r"([^A-Za-z]+)", name.removesuffix(".tar"))
        at = next((i for i, word in enumerate(words) if word.lower() in SPLITS), None)
        if at is None:
            return {}
        stem = "".join(words[: at + 1])
        patterns[stem] = stem + "*.tar"
    if len(patterns) < 2:
        return {}
    splits = {re.split(r"[^A-Za-z]+", stem)[-1].lower(): pattern for stem, pattern in patterns.items()}
    # `digits-train` and `shapes-train` are two datasets.
    return splits if len(splits) == len(patterns) else patterns


def _measure(source: Source, config: DatasetConfig, root: Path) -> Survey:
    if source.layout == "tars":
        total = sum(path.stat().st_size for path in source.tars.values())
        rows, classes, exact = _look_into_tars(list(source.tars.items()), total)
        speed = _hash_speed(list(source.tars.values()))
        return Survey(config, root, "tars", len(source.tars), total, rows, classes, exact, speed)
    assert source.folder is not None
    if source.layout == "flat-folder":
        folders, classes = [source.folder], None
    else:
        names = sorted(e.name for e in os.scandir(source.folder) if not e.name.startswith(".") and e.is_dir())
        folders, classes = [source.folder / name for name in names], len(names)
    started, counts = time.monotonic(), []
    for folder in folders:
        counts.append(count_images(folder, source.layout))
        if time.monotonic() - started > LOOK_S:
            break
    rows = round(sum(counts) * len(folders) / len(counts))
    sample = _some_images(folders)
    size = round(rows * sum(path.stat().st_size for path in sample) / max(1, len(sample)))
    exact = len(counts) == len(folders)
    return Survey(config, root, source.layout, rows, size, rows, classes, exact, _hash_speed(sample))


def _look_into_tars(tars: Sequence[tuple[str, Path]], total: int) -> tuple[int, int | None, bool]:
    """Images and classes, from as many headers as `LOOK_S` allows; damage ends the look, indexing will name it."""
    started, images, seen_bytes, labels = time.monotonic(), 0, 0, set()
    for shard, path in tars:
        descriptor = open_tar(path, shard)
        reached = 0
        try:
            for member in walk(descriptor, shard):
                reached = member.offset + member.size
                parts = split_name(member.name)
                if parts is not None and parts[1] in IMAGE_EXTENSIONS:
                    images += 1
                elif parts is not None and parts[1] == "cls" and member.size < 32:
                    labels.add(os.pread(descriptor, member.size, member.offset))
                if time.monotonic() - started > LOOK_S:
                    return round(images * total / (seen_bytes + reached)), len(labels) or None, False
        except UserError:
            return round(images * total / max(1, seen_bytes + reached)), len(labels) or None, False
        finally:
            os.close(descriptor)
        seen_bytes += path.stat().st_size
    return images, len(labels) or None, True


def _some_images(folders: Sequence[Path]) -> list[Path]:
    """Up to 200 images from folders spread over all."""
    chosen: list[Path] = []
    for folder in folders[:: max(1, len(folders) // 20)]:
        here = [Path(e.path) for e in os.scandir(folder) if is_image(e.name)]
        chosen += here[: max(10, 200 // max(1, len(folders)))]
    return chosen[:200]


def _hash_speed(paths: Sequence[Path]) -> float:
    """Bytes per second of reading and hashing some files (at most 64 MiB of each, within `LOOK_S`)."""
    started, done = time.monotonic(), 0
    for path in paths:
        with path.open("rb") as handle:
            left = _PROBE_BYTES
            while left > 0 and (piece := handle.read(1 << 20)):
                xxhash.xxh3_128_digest(piece)
                left -= len(piece)
                done += len(piece)
                if time.monotonic() - started > LOOK_S:
                    return done / (time.monotonic() - started)
    return max(1, done) / max(1e-6, time.monotonic() - started)


def _devkit_labels(path: Path) -> Path | None:
    """The devkit's ground truth near ImageNet's flat validation folder."""
    if not any(entry.name.startswith("ILSVRC2012_val_") for entry in os.scandir(path)):
        return None
    for folder in (path, path.parent, path.parent.parent):
        for place in ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data"):
            candidate = folder / place / DEVKIT_FILE
            if candidate.is_file():
                return candidate
    return None
