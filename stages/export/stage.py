"""The export stage: one encoder as a folder or a file that appears whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unic_pipe.pipeline.encoders.loading import load_encoder
from unic_pipe.pipeline.encoders.official_names import LADDER_FILE
from unic_pipe.pipeline.encoders.resolve import resolve_encoder
from unic_pipe.pipeline.storage.local import sync_folder
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.storage.targets import require_target
from unic_pipe.pipeline.students.adaptors import FILE as ADAPTORS
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.export import graphs
from unic_pipe.stages.export.card import model_card
from unic_pipe.stages.export.facts import facts_of, licence_of
from unic_pipe.stages.export.subject import Subject

CARD, WEIGHTS, CONFIG = "README.md", "model.safetensors", "config.json"
FOLDER_FILES = frozenset((CARD, WEIGHTS, CONFIG, ADAPTORS, LADDER_FILE))
"""What may be in a folder that is replaced."""


def check(to: str, target: Path, overwrite: bool) -> None:
    """Refuse early what would fail at the end.
    Raises UserError: another ending than the format's, a package that is lacking, or a target that cannot be written."""
    ending = graphs.ENDINGS.get(to)
    if ending is None:
        require_target(target, overwrite, FOLDER_FILES)
        return
    if target.suffix != ending:
        raise UserError(f"{target}: a file of --to {to} ends with {ending}.", f"Name it {target.stem}{ending}.")
    graphs.require_packages(to)
    require_target(target, overwrite)


def export_folder(it: Subject, target: Path, overwrite: bool, adaptors: bool = True, address: str | None = None) -> str:
    """Write the folder that timm loads, with a model card; the student's licence. `adaptors`: with the heads to its teachers;
    `address`: by what the card says that it is loaded.
    Raises StageError: the disk is full, or what was written is not what should have been."""
    with _appearing(target, overwrite, FOLDER_FILES) as folder:
        folder.mkdir()
        return write_folder(it, folder, address or target.name, adaptors)


def write_folder(it: Subject, folder: Path, address: str, adaptors: bool = True) -> str:
    """Fill an empty folder, and read it back; the student's licence."""
    weights = it.encoder.weights_path
    if weights is None or weights.suffix != ".safetensors":
        raise UserError(
            f"{it.folder}: its weights are not in {WEIGHTS}.", "Import them first: unic-pipe import FILE NAME"
        )
    encoder = load_encoder(it.encoder)
    facts = facts_of(it)
    shutil.copyfile(weights, folder / WEIGHTS)
    for name in (ADAPTORS, LADDER_FILE) if adaptors else ():
        if (it.folder / name).is_file():
            shutil.copyfile(it.folder / name, folder / name)
    (folder / CARD).write_text(model_card(it, encoder, facts, address), encoding="utf-8")
    body = json.loads((it.folder / CONFIG).read_bytes())
    body |= {"licence": facts.licence, "readout": it.encoder.definition.readout}
    # What timm prepares images with: as evaluations do it.
    body.get("pretrained_cfg", body).update(license=facts.licence, crop_pct=CENTER.center_fraction)
    (folder / CONFIG).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    read = resolve_encoder(it.name, EncoderConfig(encoder=f"checkpoint:{folder}"), folder, None)
    if read.definition != it.encoder.definition:
        raise StageError(
            f"What was written of {it.name} reads as another encoder.", "Try again; unic-pipe verify looks at it."
        )
    return facts.licence


def export_graph(it: Subject, to: str, target: Path, overwrite: bool) -> float:
    """Write a student as a graph; the largest difference of its values from PyTorch's.
    Raises StageError: torch cannot do this network, the graph computes something else, or the disk is full."""
    encoder = load_encoder(it.encoder)
    about = graphs.about(encoder, name=it.name, licence=licence_of(it))
    write = graphs.write_onnx if to == "onnx" else graphs.write_torch_export
    with _appearing(target, overwrite) as file:
        return write(file, encoder, about)


@contextmanager
def _appearing(target: Path, overwrite: bool, ours: frozenset[str] | None = None) -> Iterator[Path]:
    """Where to write what is to stand under a name: a file and what is beside it, or a folder (`ours` are its files).

    A folder `.NAME.unic-pipe` beside it holds what is not whole yet. A kill leaves it, and the next export of that name
    removes it.
    """
    scratch = target.with_name(f".{target.name}.unic-pipe")
    try:
        with exclusive(scratch / "lock", f"An export to {target}"):
            try:
                shutil.rmtree(scratch / "new", ignore_errors=True)
                (scratch / "new").mkdir()
                yield scratch / "new" / target.name
                _publish(scratch, target, overwrite, ours)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StageError(
            f"Could not write {target}: {error.strerror or error}.", "Free some space, or write to another disk."
        ) from error


def _publish(scratch: Path, target: Path, overwrite: bool, ours: frozenset[str] | None) -> None:
    for file in (scratch / "new").rglob("*"):
        _sync(file)
    # The one that is asked for last: what it needs is there then.
    for made in sorted((scratch / "new").iterdir(), key=lambda path: path.name == target.name):
        place = target.with_name(made.name)
        require_target(place, overwrite, ours)
        if place.is_dir():
            os.rename(place, scratch / "old")
        os.replace(made, place)
    sync_folder(target.parent)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
    else:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
