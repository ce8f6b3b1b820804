"""What is exported: a finished student with all that is known of it, or the folder of an exported or imported one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unic_pipe.pipeline.encoders import ResolvedEncoder, resolve_encoder
from unic_pipe.pipeline.workspace.documents import FinishedStudent
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import NotFinishedError, UserError, did_you_mean
from unic_pipe.schemas.recipes import CENTER


@dataclass(frozen=True)
class Subject:
    """An encoder that leaves, and where what is known of it stands."""

    name: str
    folder: Path
    """With `config.json` and weights, in timm's layout."""
    encoder: ResolvedEncoder
    student: FinishedStudent | None
    """None: nothing is known but what the folder says."""
    inventory: Inventory | None
    """The working folder of the student."""


def find(text: str, inventory: Inventory | None) -> FinishedStudent | Path:
    """The student, or the folder of an exported or imported one, that a text means. `inventory`: a student's name, or one
    of its folders, is looked for there.
    Raises UserError: neither; NotFinishedError: a student that is not trained to the end."""
    finished = inventory.finished_students if inventory is not None else {}
    if text in finished:  # first, because an exported folder may have the student's name
        return finished[text]
    path = Path(text).expanduser()
    place = path.resolve()
    for student in finished.values():
        if place in (student.folder.resolve(), student.folder.resolve() / "export"):
            return student
    if (path / "config.json").is_file():
        return path
    if inventory is not None and text in inventory.config.students:
        raise NotFinishedError(f"Student {text} is not finished.", f"unic-pipe distill --student {text}")
    known = did_you_mean(text, list(finished))
    raise UserError(f"No finished student is named {text!r}{known}", "To see all: unic-pipe status")


def subject(found: FinishedStudent | Path, inventory: Inventory | None) -> Subject:
    """What `find` found, with its encoder.
    Raises StageError: a student's export is not what its training left; UserError: a folder that timm cannot read."""
    if isinstance(found, Path):
        folder = found.absolute()
        encoder = resolve_encoder(name_of(found), EncoderConfig(encoder=f"checkpoint:{folder}"), folder, None)
        return Subject(encoder.name, folder, encoder, None, None)
    assert inventory is not None, "students are found in one"
    encoder = inventory.student_encoder(found)
    return Subject(found.name, found.folder / "export", encoder, found, inventory)


def name_of(found: FinishedStudent | Path) -> str:
    """The student's name; of a folder its own, or of `export` the one that it is in."""
    if isinstance(found, FinishedStudent):
        return found.name
    place = found.resolve()
    return place.parent.name if place.name == "export" else place.name


def resized(image_size: int) -> int:
    """To how many pixels evaluations resize the short side of an image before they cut out its centre."""
    return round(image_size / CENTER.center_fraction)
