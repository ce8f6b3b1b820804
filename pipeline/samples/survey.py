"""A quick look at a folder or at tars, for `unic-pipe init`: what is there, about how much, and how long indexing takes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from unic_pipe.pipeline.samples.files import IMAGE_EXTENSIONS, class_folders, is_image
from unic_pipe.pipeline.samples.folders import count_images
from unic_pipe.pipeline.samples.labels import DEVKIT_FILE
from unic_pipe.pipeline.samples.layouts import CLASSES_ONLY, SPLITS, Layout
from unic_pipe.pipeline.samples.objects import Listings
from unic_pipe.pipeline.samples.places import ObjectFile, Root, Shard, as_root, open_shard, stamp
from unic_pipe.pipeline.samples.ranges import WINDOW_BYTES
from unic_pipe.pipeline.samples.scan import threads
from unic_pipe.pipeline.samples.shards import split_name
from unic_pipe.pipeline.samples.sources import Source, find_source, split_url
from unic_pipe.pipeline.samples.tars import walk
from unic_pipe.pipeline.storage import is_remote
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError

LOOK_S = 1.0
"""Seconds that each part of a survey may take; beyond it, figures are extrapolated."""
_PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class Survey:
    """What a source holds. Figures are estimates unless `exact`."""

    config: DatasetConfig
    """For `samples.datasets`; `source` and `labels` are relative to `root`."""
    root: Root
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


def survey(path: str | Path) -> Survey:
    """Look at tars (a path or URL with `*` or `{000..146}`, a folder, one tar), class folders or a flat folder of images.

    Raises:
        UserError: nothing there that can be a source.
    """
    if isinstance(path, str) and is_remote(path):
        folder, text = split_url(path)
        root = as_root(folder)
        config = DatasetConfig(source=text)
        return _measure(find_source(path.rstrip("/").rpartition("/")[2], config, [root]), config, root)
    ending = CLASSES_ONLY if str(path).endswith(CLASSES_ONLY) else ""
    path = Path(os.path.abspath(str(path).removesuffix(ending)))
    root, text = path.parent, path.name
    while re.search(r"[*?{\[]", root.name):
        text, root = f"{root.name}/{text}", root.parent
    labels: str | None = None
    text += ending
    source = find_source(path.name, DatasetConfig(source=text), [root])
    if source.layout == "flat-folder":
        found = _devkit_labels(path)
        labels = None if found is None else os.path.relpath(found, root)
    return _measure(source, DatasetConfig(source=text, labels=labels), root)


def survey_splits(path: str | Path) -> dict[str, Survey]:
    """Datasets below a folder or URL, by name: its `train`, `val`, `test` ... folders or tars
    (`imagenet1k-train-0001.tar`).

    Without such splits, the folder itself is the one dataset `train`.

    Raises:
        UserError: nothing there that can be a source.
    """
    folders, files = _children(path)
    found = {name.lower(): survey(f"{path}/{name}") for name in folders if name.lower() in SPLITS}
    tars = [name for name in files if name.lower().endswith(".tar")]
    for split, pattern in ({} if found else _tar_splits(tars)).items():
        found[split] = survey(f"{path}/{pattern}")
    return found or {"train": survey(path)}


def _children(path: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted; none when it is not a folder."""
    if isinstance(path, str) and is_remote(path):
        if re.search(r"[*?{\[]", path):
            return [], []
        store = as_root(path)
        assert not isinstance(store, Path)
        entries = Listings().entries(store, "")
        return [n for n, found in entries.items() if found is None], [n for n, found in entries.items() if found]
    if not Path(path).is_dir():
        return [], []
    listed = sorted(os.scandir(path), key=lambda entry: entry.name)
    return [e.name for e in listed if e.is_dir()], [e.name for e in listed if not e.is_dir()]


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


def _measure(source: Source, config: DatasetConfig, root: Root) -> Survey:
    if source.layout == "tars":
        total = sum(stamp(file).size for file in source.tars.values())
        rows, classes, exact = _look_into_tars(list(source.tars.items()), total)
        speed = _read_speed(list(source.tars.values()))
        return Survey(config, root, "tars", len(source.tars), total, rows, classes, exact, speed)
    assert source.folder is not None
    if source.layout == "flat-folder":
        folders, classes = [source.folder], None
    else:
        names = class_folders(source.folder)
        folders, classes = [source.folder / name for name in names], len(names) if len(names) > 1 else None
    started, counts = time.monotonic(), []
    for folder in folders:
        counts.append(count_images(folder, source.layout))
        if time.monotonic() - started > LOOK_S:
            break
    rows = round(sum(counts) * len(folders) / len(counts))
    sample = _some_images(folders)
    size = round(rows * sum(path.stat().st_size for path in sample) / max(1, len(sample)))
    exact = len(counts) == len(folders)
    return Survey(config, root, source.layout, rows, size, rows, classes, exact, _read_speed(sample))


def _look_into_tars(tars: Sequence[tuple[str, Shard]], total: int) -> tuple[int, int | None, bool]:
    """Images and classes, from as many headers as `LOOK_S` allows; damage ends the look, indexing will name it."""
    started, images, seen_bytes, labels = time.monotonic(), 0, 0, set()
    for shard, file in tars:
        tar = open_shard(file, shard)
        reached = 0
        try:
            for member in walk(tar, shard):
                reached = member.offset + member.size
                parts = split_name(member.name)
                if parts is not None and parts[1] in IMAGE_EXTENSIONS:
                    images += 1
                elif parts is not None and parts[1] == "cls" and member.size < 32:
                    labels.add(tar.read(member.size, member.offset))
                if time.monotonic() - started > LOOK_S:
                    return round(images * total / (seen_bytes + reached)), len(labels) or None, False
        except UserError:
            return round(images * total / max(1, seen_bytes + reached)), len(labels) or None, False
        finally:
            tar.close()
        seen_bytes += tar.size
    return images, len(labels) or None, True


def _some_images(folders: Sequence[Path]) -> list[Path]:
    """Up to 200 images from folders spread over all."""
    chosen: list[Path] = []
    for folder in folders[:: max(1, len(folders) // 20)]:
        here = [Path(e.path) for e in os.scandir(folder) if is_image(e.name) and e.is_file()]
        chosen += here[: max(10, 200 // max(1, len(folders)))]
    return chosen[:200]


def _read_speed(files: Sequence[Shard]) -> float:
    """Bytes per second of reading and hashing some files (at most 64 MiB of each, within `LOOK_S`).

    Objects are read as indexing reads them: several at a time, in large requests.
    """
    started, done = time.monotonic(), 0
    some = [file for file in files if isinstance(file, ObjectFile)][: threads(len(files))]
    if some:
        with ThreadPoolExecutor(len(some)) as pool:
            done = sum(pool.map(lambda file: len(open_shard(file, file.name).read(WINDOW_BYTES, 0)), some))
        return max(1, done) / max(1e-6, time.monotonic() - started)
    for file in files:
        shard = open_shard(file, file.name)
        try:
            for at in range(0, min(shard.size, _PROBE_BYTES), 1 << 20):
                piece = shard.read(1 << 20, at)
                xxhash.xxh3_128_digest(piece)
                done += len(piece)
                if time.monotonic() - started > LOOK_S:
                    return done / (time.monotonic() - started)
        finally:
            shard.close()
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
