"""Images as somebody names them: a folder of any depth, tars, one image, or a list of paths. An index of exactly these, in
their order, without classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.files import IMAGE_EXTENSIONS, NAMES, is_image, list_images
from unic_pipe.pipeline.samples.folders import ImageFolder
from unic_pipe.pipeline.samples.keys import named, unique_keys
from unic_pipe.pipeline.samples.left_out import LeftOut, shown
from unic_pipe.pipeline.samples.lists import read_text
from unic_pipe.pipeline.samples.places import Root
from unic_pipe.pipeline.samples.scan import Piece, TarPiece, entries_of, folder_pieces, scan_pieces
from unic_pipe.pipeline.samples.segments import make_segment
from unic_pipe.pipeline.samples.shards import left_out
from unic_pipe.pipeline.samples.sources import data_roots, find_source
from unic_pipe.pipeline.samples.table import one_array
from unic_pipe.pipeline.storage import LocalStore, is_remote
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import DatasetManifest

NAME = "images"
"""Of every such index."""
_ARCHIVES = (".tar", ".tgz", ".gz", ".zst", ".xz", ".bz2", ".zip")
_KINDS = (
    "Give a folder of images, tars (a folder of them, a pattern, one), an image, or a text file with a path a line."
)


@dataclass(frozen=True)
class Plain:
    """What was named."""

    text: str
    roots: tuple[Root, ...]
    pieces: Sequence[Piece]
    left: LeftOut
    """What a folder holds beside images."""

    @property
    def tars(self) -> bool:
        """Whether the images are in tars, and so have keys; others are known by their paths."""
        return isinstance(self.pieces[0], TarPiece)


def find_images(text: str) -> Plain:
    """What is to be read, by its path (or the `s3://` address of tars), without reading it.

    Raises:
        UserError: nothing is there, or nothing that can be read as images; a list names files that are not there.
    """
    path = Path(text).expanduser().absolute()
    if not is_remote(text):
        if path.is_dir():
            names, left = list_images(path)
            tars = any(path.glob("*.tar"))
            if names and tars:
                raise UserError(
                    f"{path} holds tars beside images ({shown(names[0])}, ...): which are meant?",
                    f"For the tars: '{text.rstrip('/')}/*.tar'; for images, move the tars away.",
                )
            if not names and not tars:
                endings = " ".join(sorted(IMAGE_EXTENSIONS))
                raise UserError(f"{path} holds no image ({endings}), at any depth, and no tars.", _KINDS)
            if names:
                return _files(text, path, names, left)
        elif path.is_file() and is_image(path.name):
            return _files(text, path.parent, (path.name,))
        elif path.is_file() and path.suffix.lower() not in _ARCHIVES:
            return _files(text, path.parent, _listed(path))
        elif not path.exists() and not any(sign in text for sign in "*?[{"):
            raise UserError(f"{text}: no such file or folder.", _KINDS)
    return _tars(text, text if is_remote(text) else str(path))


def index_images(found: Plain, place: LocalStore, block_rows: int, reporter: Reporter, stop: Stop) -> Dataset:
    """Hash all images, and write an index of them into `place`: the same images give the same index.

    Keys are the images' paths as they were named (relative to the folder, or as the list has them), and those of the
    samples in tars, with the tar's name before them where they repeat.

    Raises:
        UserError: an image or tar that cannot be read.
        IndexingStopped: `stop` was requested.
    """
    scanned = scan_pieces(found.pieces, place.child("scan"), reporter, f"reading {found.text}", stop)
    left = found.left
    left.merge(left_out(scanned))
    for line in left.lines():
        reporter.say(f"{found.text}: {line}.")
    names, prefixed = unique_keys(scanned, "tars", [], False) if found.tars else (_paths, False)
    if not sum(piece.num_rows for piece in scanned):
        raise UserError(f"{found.text} holds no image.", _KINDS)
    file = place.temporary()
    segment = make_segment(named(scanned, names), [], block_rows, entries_of(found.pieces, scanned), file)
    manifest = DatasetManifest(
        name=NAME,
        source=found.text,
        layout="tars" if found.tars else "listed",
        block_rows=block_rows,
        classes=None,
        labelled=False,
        permuted=False,
        prefixed=prefixed,
        names=NAMES,
        segments=(segment,),
    )
    store = place.child(f"{NAME}-{short(manifest.digest)}-{block_rows}")
    store.put(segment.file, file.read_bytes())
    file.unlink()
    store.put("manifest.json", manifest.to_bytes())
    return Dataset(store, found.roots, manifest)


def _paths(rows: pa.Table) -> pa.Array:
    """Keys of images that are named by their paths."""
    return one_array(rows["shard"])


def _files(text: str, folder: Path, names: Sequence[str], left: LeftOut | None = None) -> Plain:
    images = ImageFolder("", folder, "", None, tuple(names))
    return Plain(text, (folder,), folder_pieces([images], NAMES), left or LeftOut())


def _tars(text: str, source: str) -> Plain:
    config = DatasetConfig(source=source)
    roots = data_roots(Path.cwd(), config, SamplesConfig(datasets={}))
    try:
        found = find_source(NAME, config, roots)
    except UserError as error:
        hint = error.hint or ""
        configured = "`source" in hint or "`samples" in hint  # which is not how these images were named
        raise UserError(error.message.removeprefix(f"dataset {NAME}: "), _KINDS if configured else hint) from None
    if found.layout != "tars":
        raise UserError(f"{text}: neither tars nor a folder of images.", _KINDS)
    pieces = [TarPiece(shard, file, None, NAMES) for shard, file in found.tars.items()]
    return Plain(text, roots, pieces, LeftOut())


def _listed(path: Path) -> tuple[str, ...]:
    """The paths in a list, in its order. Raises UserError: one is not there, or twice."""
    lines = {n: line.strip() for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()}
    missing = {n: name for n, name in lines.items() if not (path.parent / name).is_file()}
    if missing or not lines:
        number, name = next(iter(missing.items()), (1, ""))
        raise UserError(
            f"{path}: {len(missing):,} of its {len(lines):,} lines name no file (first: line {number}, {shown(name)!r}).",
            f"Each line is the path of an image, relative to {path.parent} or absolute.",
        )
    seen: dict[str, int] = {}
    for number, name in lines.items():
        if name in seen:
            raise UserError(
                f"{path}: {shown(name)} is named twice, in lines {seen[name]} and {number}.", "Remove one of the lines."
            )
        seen[name] = number
    return tuple(lines.values())
