"""A quick look at a folder or at tars, for `unic-pipe init`: what is there, about how much, and how long indexing takes."""

import io
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash
from PIL import Image

from unic_pipe.pipeline.samples.classes import Names, whole_numbers
from unic_pipe.pipeline.samples.files import CLASSES_ONLY, IMAGE_EXTENSIONS, Layout, class_folders, is_image
from unic_pipe.pipeline.samples.folders import count_images, list_folders
from unic_pipe.pipeline.samples.labels import DEVKIT_FILE
from unic_pipe.pipeline.samples.patterns import Listings
from unic_pipe.pipeline.samples.places import ObjectFile, Root, Shard, as_root, open_shard, stamp
from unic_pipe.pipeline.samples.ranges import WINDOW_BYTES
from unic_pipe.pipeline.samples.scan import threads
from unic_pipe.pipeline.samples.shards import class_number, scan_tar, split_name
from unic_pipe.pipeline.samples.sources import Source, find_source, split_url
from unic_pipe.pipeline.samples.splits import folder_splits, tar_splits, usable_names
from unic_pipe.pipeline.samples.tars import walk
from unic_pipe.pipeline.storage import is_remote
from unic_pipe.schemas.config import DatasetConfig
from unic_pipe.schemas.errors import UserError

LOOK_S = 1.0
"""Seconds that each part of a survey may take; beyond it, figures are extrapolated."""
_PROBE_BYTES = 64 << 20
SIZED = 24
"""Images whose size is read."""
_HEADER_BYTES = 1 << 16


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
    side: int | None = None
    """Median of the shorter sides of some images, in pixels; None where none could be read."""
    class_names: Names = None
    """As an index will have them."""
    class_numbers: tuple[int, ...] = ()
    """All class numbers, in order; empty where they are not known without reading everything."""

    @property
    def seconds(self) -> float:
        """Time that indexing takes, estimated."""
        return self.bytes / self.bytes_per_s


def survey(path: str | Path) -> Survey:
    """Look at tars (a path or URL with `*` or `{000..146}`, a folder, one tar), class folders or a flat folder of images.
    Raises UserError: nothing there that can be a source."""
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
    Raises UserError: nothing there that can be a source.
    """
    folders, files = _children(path)
    places = {name.lower(): name for name in folder_splits(folders)}
    places = places or tar_splits([name for name in files if name.lower().endswith(".tar")])
    names = usable_names(places)
    found = {names[split]: survey(f"{path}/{place}") for split, place in places.items()}
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
    return [e.name for e in listed if os.path.isdir(e)], [e.name for e in listed if not os.path.isdir(e)]


def _measure(source: Source, config: DatasetConfig, root: Root) -> Survey:
    if source.layout == "tars":
        total = sum(stamp(file).size for file in source.tars.values())
        found = _look_into_tars(list(source.tars.items()), total)
        speed, side = _read_speed(list(source.tars.values())), _middle(found.sides)
        if not found.rows:
            shard, file = next(iter(source.tars.items()))
            scan_tar(file, shard, None)  # says what is in it
        numbers = _numbers(found.labels, config.first_class) if found.exact else ()
        return Survey(
            config, root, "tars", len(source.tars), total, found.rows, len(found.labels) or None, found.exact, speed, side,
            class_numbers=numbers,
        )  # fmt: skip
    assert source.folder is not None
    names = () if source.layout == "flat-folder" else class_folders(source.folder)
    if source.layout == "flat-folder":
        folders, classes = [source.folder], None
    else:
        folders, classes = [source.folder / name for name in names], len(names) if len(names) > 1 else None
    started, counts = time.monotonic(), []
    for folder in folders:
        counts.append(count_images(folder, source.layout))
        if time.monotonic() - started > LOOK_S:
            break
    if 0 in counts:
        list_folders(source)  # says what is in them
    rows = round(sum(counts) * len(folders) / len(counts))
    sample = _some_images(folders)
    size = round(rows * sum(path.stat().st_size for path in sample) / max(1, len(sample)))
    exact = len(counts) == len(folders)
    side = _middle([_side(path.read_bytes()) for path in sample[:: max(1, len(sample) // SIZED)]])
    whole = whole_numbers(names)
    return Survey(
        config, root, source.layout, rows, size, rows, classes, exact, _read_speed(sample), side,
        class_names=None if whole or classes is None else names,
        class_numbers=() if classes is None else tuple(sorted(whole or range(classes))),
    )  # fmt: skip


def _numbers(labels: Iterable[bytes], first_class: int) -> tuple[int, ...]:
    """The class numbers of tars' labels; none where one is no number, which indexing will say."""
    try:
        found = {class_number(label.decode()) for label in labels}
    except ValueError:
        return ()
    return tuple(sorted(number - first_class for number in found if number is not None))


class _Look(NamedTuple):
    rows: int
    labels: set[bytes]
    exact: bool
    sides: list[int | None]


def _look_into_tars(tars: Sequence[tuple[str, Shard]], total: int) -> _Look:
    """Images and classes, from as many headers as `LOOK_S` allows; damage ends the look, indexing will name it."""
    started, images, seen_bytes = time.monotonic(), 0, 0
    labels: set[bytes] = set()
    sides: list[int | None] = []
    for shard, file in tars:
        tar = open_shard(file, shard)
        reached = 0
        try:
            for member in walk(tar, shard):
                reached = member.offset + member.size
                parts = split_name(member.name)
                if parts is not None and parts[1] in IMAGE_EXTENSIONS:
                    images += 1
                    if len(sides) < SIZED:
                        sides.append(_side(tar.read(min(member.size, _HEADER_BYTES), member.offset)))
                elif parts is not None and parts[1] == "cls" and member.size < 32:
                    labels.add(tar.read(member.size, member.offset))
                if time.monotonic() - started > LOOK_S:
                    return _Look(round(images * total / (seen_bytes + reached)), labels, False, sides)
        except UserError:
            return _Look(round(images * total / max(1, seen_bytes + reached)), labels, False, sides)
        finally:
            tar.close()
        seen_bytes += tar.size
    return _Look(images, labels, True, sides)


def _side(head: bytes) -> int | None:
    """The shorter side of an image, in pixels, from its first bytes; None where they do not say."""
    try:
        with Image.open(io.BytesIO(head)) as image:
            return min(image.size)
    except Exception:  # whatever a damaged image raises; indexing will name it
        return None


def _middle(sides: Sequence[int | None]) -> int | None:
    known = sorted(side for side in sides if side is not None)
    return known[len(known) // 2] if known else None


def _some_images(folders: Sequence[Path]) -> list[Path]:
    """Up to 200 images from folders spread over all."""
    chosen: list[Path] = []
    for folder in folders[:: max(1, len(folders) // 20)]:
        here = [Path(e.path) for e in os.scandir(folder) if is_image(e.name) and os.path.isfile(e)]
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
