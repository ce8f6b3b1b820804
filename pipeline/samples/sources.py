"""Where a dataset's samples are: `DatasetConfig.source`, found under the roots, as tars or as a folder of images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unic_pipe.pipeline.samples.files import (
    CLASSES_ONLY,
    IMAGE_EXTENSIONS,
    Layout,
    class_folders,
    is_image,
    only_layout,
)
from unic_pipe.pipeline.samples.patterns import Listings, matches
from unic_pipe.pipeline.samples.places import Root, Shard, as_root, where
from unic_pipe.pipeline.samples.splits import SPLITS
from unic_pipe.pipeline.storage import Store, is_remote
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError

if TYPE_CHECKING:
    from unic_pipe.pipeline.benchmarks.locate import Place

_DECOMPRESS = {
    ".tar.gz": "gunzip -k",
    ".tgz": "gunzip -k -S .tgz",
    ".tar.zst": "zstd -d",
    ".tar.xz": "unxz -k",
    ".tar.bz2": "bunzip2 -k",
}


@dataclass(frozen=True)
class Source:
    """A dataset's data as found now, on disk or in an object store."""

    text: str
    """`source` relative to a root; for listed images `reader`."""
    layout: Layout
    tars: dict[str, Shard]
    """Tars by their path relative to a root, in row order; empty for folders."""
    folder: Path | None
    """The folder of images."""
    base: str
    """`folder` relative to its root."""


def data_roots(
    workdir: Path, config: DatasetConfig, samples: SamplesConfig, options: Mapping[str, Any] | None = None
) -> tuple[Root, ...]:
    """The places in which a dataset's files are searched: `samples.roots` (folders are relative to the working folder),
    then the folder of an absolute `source`. Images that a benchmark lists are searched in its own folder. `options` are
    those of object stores (`storage.open_store`)."""
    if config.reader is not None:
        return (_place(config.reader, workdir / Path(config.source).expanduser()).folder,)
    roots = tuple(as_root(root, workdir, options) for root in samples.roots)
    implicit = _split_absolute(config.source, roots, options)[1]
    return roots if implicit is None or implicit in roots else (*roots, implicit)


def relative_source(config: DatasetConfig, roots: Sequence[Root]) -> str:
    """`config.source` relative to one of the roots, as manifests record it."""
    return _split_absolute(config.source, roots)[0]


def find_source(name: str, config: DatasetConfig, roots: Sequence[Root], known: Layout | None = None) -> Source:
    """Find the data of dataset `name`; `known` is the layout of its index, which decides where several are possible.
    Raises UserError: nothing there, compressed tars, pipes and other URLs, split folders taken for classes, folders of
    images in an object store, several layouts beside each other."""
    if config.reader is not None:
        (folder,) = (root for root in roots if isinstance(root, Path))
        return Source(config.reader, "listed", {}, _place(config.reader, folder).require(), "")
    _refuse_commands(name, config.source)
    text, implicit = _split_absolute(config.source, roots)
    roots = roots if implicit is None else (*roots, implicit)
    listings = Listings()
    if text.endswith(CLASSES_ONLY):
        return _folder_source(name, text, text.removesuffix(CLASSES_ONLY), roots, config, listings, "class-folders")
    if known is None and (config.labels is not None or config.label_field is not None):
        known = "flat-folder" if config.labels is not None else "tars"
    found, missing = matches(text, roots, listings)
    if not found:
        _refuse_compressed(name, [file for root in roots for file in _siblings(root, text, listings)])
        raise _nothing(name, text, roots)
    if missing:
        raise UserError(
            f"dataset {name}: {len(missing)} of {len(missing) + len(found)} tars of {config.source!r} are not there "
            f"(first: {missing[0]}).",
            "Shorten the range, or add the folder that holds them to `samples.roots`.",
        )
    folders = [path for path, file in found.items() if file is None or (isinstance(file, Path) and file.is_dir())]
    if len(folders) == 1 and len(found) == 1:
        return _folder_source(name, text, folders[0], roots, config, listings, known)
    if folders:
        raise UserError(
            f"dataset {name}: {config.source!r} matches the folder {found[folders[0]] or folders[0]} and "
            f"{len(found) - 1} more paths.",
            "Give one folder, a pattern that matches tars only, or FOLDER/*/ for all class folders in one.",
        )
    return _tar_source(name, text, {path: file for path, file in found.items() if file is not None})


def _nothing(name: str, text: str, roots: Sequence[Root]) -> UserError:
    looked = ", ".join(f"{where(root)}/{text}" for root in roots)
    return UserError(
        f"dataset {name}: nothing found for source {text!r} (looked for {looked}).",
        "Set `source`, or `samples.roots` to the folder that it is relative to.",
    )


def split_url(url: str) -> tuple[str, str]:
    """The folder that is to be the root of a `source` in an object store, and the source relative to it."""
    scheme, _, rest = url.partition("://")
    parts = rest.rstrip("/").split("/")
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?\[{]", part)), len(parts) - 1)
    cut = max(1, min(first, len(parts) - 1))
    return f"{scheme}://{'/'.join(parts[:cut])}", "/".join(parts[cut:]) or "."


def _place(reader: str, base: Path) -> Place:
    from unic_pipe.pipeline.benchmarks.locate import locate, split_of

    return locate(*split_of(reader), base)


def _split_absolute(
    source: str, roots: Sequence[Root], options: Mapping[str, Any] | None = None
) -> tuple[str, Root | None]:
    if is_remote(source):
        for root in roots:
            if not isinstance(root, Path) and source.startswith(f"{root.location}/"):
                return os.path.normpath(source.removeprefix(f"{root.location}/")), None
        folder, text = split_url(source)
        return text, as_root(folder, options=options)
    ending = CLASSES_ONLY if source.endswith(CLASSES_ONLY) else ""
    path = Path(source.removesuffix(ending) or "/").expanduser()
    if not path.is_absolute():
        return os.path.normpath(path) + ending, None
    for root in roots:
        absolute = Path(os.path.abspath(root)) if isinstance(root, Path) else path
        if path.is_relative_to(absolute) and path != absolute:
            return str(path.relative_to(absolute)) + ending, None
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?\[{]", part)), len(parts) - 1)
    cut = max(1, min(first, len(parts) - 1))
    return (os.path.join(*parts[cut:]) if len(parts) > 1 else ".") + ending, Path(*parts[:cut])


def _refuse_commands(name: str, source: str) -> None:
    if is_remote(source) or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", source):
        return
    kind = "a command" if source.startswith("pipe:") else "a URL that samples cannot be read from"
    raise UserError(
        f"dataset {name}: source {source!r} is {kind}; samples are read by offset from files, s3:// and gs://.",
        "Download the data, or mount the bucket, and give its path.",
    )


def _tar_source(name: str, text: str, found: dict[str, Shard]) -> Source:
    _refuse_compressed(name, list(found))
    other = [path for path in found if not path.lower().endswith(".tar")]
    if other:
        hint = "give the folder that holds the images" if is_image(other[0]) else "a source is tars or a folder"
        raise UserError(f"dataset {name}: {other[0]} is not a .tar file.", f"Set `source`: {hint}.")
    return Source(text, "tars", found, None, "")


def _folder_source(
    name: str,
    text: str,
    base: str,
    roots: Sequence[Root],
    config: DatasetConfig,
    listings: Listings,
    known: Layout | None,
) -> Source:
    tars: dict[str, Shard] = {}
    for root in reversed(roots):
        tars |= _tars_in(root, base, listings)
    folder = next((root / base for root in roots if isinstance(root, Path) and (root / base).is_dir()), None)
    if folder is None:
        if tars:
            return Source(text, "tars", dict(sorted(tars.items())), None, "")
        store = next((root for root in roots if not isinstance(root, Path)), None)
        raise _nothing(name, text, roots) if store is None else _no_tars(name, base, store, listings)
    files = sorted(entry.name for entry in os.scandir(folder) if not os.path.isdir(entry))
    layout = only_layout(name, base, folder, list(tars), files, known)
    if layout == "tars" and tars:
        return Source(text, "tars", dict(sorted(tars.items())), None, "")
    if layout == "flat-folder":
        return Source(text, "flat-folder", {}, folder, base)
    if layout is None:
        _refuse_compressed(name, files)
        raise UserError(
            f"dataset {name}: no samples in {folder} (looked for *.tar, for images "
            f"{' '.join(sorted(IMAGE_EXTENSIONS))}, and for class folders).",
            "Set `source` to the folder that holds them.",
        )
    classes = class_folders(folder)
    if {c.lower() for c in classes} <= SPLITS:
        raise UserError(
            f"dataset {name}: {folder} holds the splits {', '.join(classes)}, not class folders.",
            f"Set `source: {Path(base, classes[0]).as_posix()}`.",
        )
    if config.labels is not None:
        raise UserError(
            f"dataset {name}: `labels` is for a flat folder; {folder} has class folders.", "Remove `labels`."
        )
    return Source(text, "class-folders", {}, folder, base)


def _tars_in(root: Root, base: str, listings: Listings) -> dict[str, Shard]:
    """Tars directly in the folder `base` of a root, by their path relative to the root."""
    pattern = f"{base}/*.tar" if base != "." else "*.tar"
    if not isinstance(root, Path):
        return {path: file for path, file in listings.matches(root, pattern).items() if file is not None}
    return {
        (Path(base) / path.name).as_posix(): path
        for path in (root / base).glob("*.tar")
        if not path.name.startswith(".")
    }


def _no_tars(name: str, base: str, store: Store, listings: Listings) -> UserError:
    entries = listings.entries(store, "" if base == "." else base)
    _refuse_compressed(name, list(entries))
    place = store.describe(base)
    prefix = "" if base == "." else f"{base}/"
    folders = [entry for entry, found in entries.items() if found is None]
    if any(name.lower().endswith(".tar") for below in folders[:3] for name in listings.entries(store, prefix + below)):
        return UserError(f"dataset {name}: {place} holds folders of tars.", f'Set `source: "{prefix}*/*.tar"`.')
    if any(map(is_image, entries)) or any(stamp is None for stamp in entries.values()):
        return UserError(
            f"dataset {name}: {place} holds no tars, and single images are not read from object stores "
            "(each would cost a request).",
            f"Pack them where they are files (unic-pipe pack {name} FOLDER), and upload the tars.",
        )
    return UserError(f"dataset {name}: no tars in {place}.", "Set `source` to the folder that holds them.")


def _siblings(root: Root, text: str, listings: Listings) -> list[str]:
    """Names of files that a pattern might have meant, with anything after their names."""
    folder, _, last = text.rpartition("/")
    start = last.replace("{", "*").partition("*")[0]
    if not isinstance(root, Path):
        return [name for name in listings.entries(root, folder) if name.startswith(start)]
    matches = glob.glob(glob.escape(str(root / folder)) + "/" + start + "*")
    return [Path(match).name for match in matches[:1000]]


def _refuse_compressed(name: str, files: Sequence[str]) -> None:
    for ending, command in _DECOMPRESS.items():
        hits = sorted(file for file in files if file.lower().endswith(ending))
        if hits:
            more = f" and {len(hits) - 1} more are" if len(hits) > 1 else " is"
            raise UserError(
                f"dataset {name}: {hits[0]}{more} compressed; images in compressed tars cannot be read by offset.",
                f"Decompress them: {command} {hits[0]}",
            )
