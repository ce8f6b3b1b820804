"""The ladder of a finished student as it is on disk: projectors and the statistics that its targets were standardized with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unic_pipe.pipeline.cache.normalisers import BATCH_STD_FLOOR, normalisation
from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.official import Statistics
from unic_pipe.pipeline.encoders.official_export import named_ladder
from unic_pipe.pipeline.storage import sha256
from unic_pipe.pipeline.students.adaptors import AdaptedStudent, Adaptors, read_adaptors
from unic_pipe.pipeline.students.build import student_of
from unic_pipe.pipeline.students.heads.heads import Heads, rotated
from unic_pipe.pipeline.students.ladder import rungs
from unic_pipe.pipeline.workspace.documents import FinishedStudent, last_entry, lost_ladder, read_document
from unic_pipe.pipeline.workspace.targets import frozen_rotation
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.losses import EXACT, TOKENS
from unic_pipe.schemas.students import StudentManifest


def adapted(
    ladder: FinishedStudent | Path, encoder: Encoder, teacher: str, tokens: tuple[TokenType, ...]
) -> AdaptedStudent:
    """A finished student of ours, or an official checkpoint in the folder to which it was imported, with its ladder to a
    teacher; `encoder` is its export, loaded.

    Raises:
        UserError: it was not trained on any of these tokens of that teacher.
        StageError: the file that holds the ladder is gone or damaged.
    """
    student = student_of(encoder.model, encoder.definition.image_size)
    if isinstance(ladder, Path):
        adaptors = read_adaptors(ladder)
    elif ladder.export.adaptors is not None:
        adaptors = read_adaptors(ladder.folder / "export")
    else:
        state = last_checkpoint(ladder)
        running = state.get("running", {})
        adaptors = adaptors_of(ladder.manifest, ladder.folder, ladder_state(state), running, student.depth)
    return AdaptedStudent(student, encoder.definition, adaptors, teacher, tokens)


def adaptors_of(
    manifest: StudentManifest, folder: Path, ladder: Mapping[str, torch.Tensor], running: Mapping[str, Any], depth: int
) -> Adaptors:
    """What leaves with a student: its ladder (a state dict) to every teacher, by the teachers' names.

    Args:
        manifest: the student's.
        folder: the student's, with the statistics of its targets.
        ladder: as exported: the moving average, where there is one.
        running: state of the running standardization; empty where there is none.
        depth: number of the student's rungs.

    Raises:
        DamagedError, StageError: as of `statistics_of`.
    """
    names = {teacher.name: teacher.name for teacher in manifest.definition.teachers}
    config = manifest.definition.config
    blocks, statistics = rungs(config.ladder, depth).blocks, statistics_of(manifest, folder, names, running)
    found = named_ladder(ladder, names, blocks, config.loss)
    for key, x in found.items():
        teacher, token, _, _, layer, _ = key.rsplit(".", 5)
        back_EE = _way_back(manifest, folder, teacher, token)
        if layer == "2" and back_EE is not None:
            found[key] = (back_EE @ x.double()).to(x.dtype)
    return Adaptors(found, statistics)


def head_adaptors_of(
    manifest: StudentManifest, folder: Path, heads: Heads, state: Mapping[str, torch.Tensor], running: Mapping[str, Any]
) -> Adaptors:
    """As `adaptors_of`, of heads that are no ladder.

    Raises:
        DamagedError, StageError: as of `statistics_of`.
    """
    names = {teacher.name: teacher.name for teacher in manifest.definition.teachers}
    found = {}
    for (teacher, key), mine in heads.states(state).items():
        # Where a head is for both token types, both are normalised alike, or not at all.
        back_EE = _way_back(manifest, folder, teacher, "patch" if key == "both" else key)
        found[teacher, key] = mine if back_EE is None else rotated(mine, back_EE)
    statistics = statistics_of(manifest, folder, names, running)
    return Adaptors({}, statistics, found, manifest.definition.config.ladder)


def _way_back(manifest: StudentManifest, folder: Path, teacher: str, token: str) -> torch.Tensor | None:
    """The inverse of the rotation of a teacher's targets, (E, E) float64; None: they were not rotated."""
    rotation_EE = frozen_rotation(manifest, folder, teacher, "cls" if token == "cls" else "patch")
    return None if rotation_EE is None else torch.from_numpy(rotation_EE.T)


def statistics_of(
    manifest: StudentManifest, folder: Path, names: Mapping[str, str], running: Mapping[str, Any]
) -> Statistics:
    """Mean and std of every target as float32: running or exact ones, or 0 and 1 where targets were not standardized.

    Raises:
        DamagedError: statistics that the student was trained with are not what was written.
        StageError: they are gone, or another document's.
    """
    found: Statistics = {}
    for teacher in manifest.definition.teachers:
        document = _frozen_statistics(manifest, folder, teacher.name)
        exact = {} if document is None else {"cls": document.cls, "patch": document.patch}
        both = found[names[teacher.name]] = {}
        for token, size in zip(TOKENS, (teacher.cls_dim, teacher.patch_dim), strict=True):
            known, moving = exact.get(token), running.get(teacher.name, {}).get(token)
            mean_D, std_D = torch.zeros(size), torch.ones(size)
            how = manifest.definition.config.loss.normaliser(token)
            if known is not None and how in EXACT:
                mean_D, std_D = (torch.from_numpy(value) for value in normalisation(known, how))
            elif moving is not None:
                mean_D, std_D = moving["mean"], moving["std"]
                std_D = std_D.clamp(min=BATCH_STD_FLOOR) if how == "batch" else std_D
            shape = (1, size) if token == "cls" else (1, 1, size)
            both[token] = {"mean": mean_D.float().reshape(shape), "std": std_D.float().reshape(shape)}
    return found


def _frozen_statistics(manifest: StudentManifest, folder: Path, teacher: str) -> StatisticsDocument | None:
    """The statistics that the manifest names; None where it names none."""
    digest = manifest.statistics.get(teacher)
    if digest is None:
        return None
    path = folder / "statistics" / f"{teacher}.json"
    document = read_document(path, StatisticsDocument)
    if document is None or digest_of(document) != digest:
        raise StageError(
            f"{path}: the statistics that student {manifest.name} was trained with are "
            f"{'gone' if document is None else 'not those of its manifest'}.",
            f"Restore them, or train it again: mv {folder} {folder}.old; unic-pipe distill --student {manifest.name}",
        )
    return document


def ladder_state(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The ladder that belongs to the exported encoder: its moving average, where the student has one."""
    ladder: dict[str, torch.Tensor] = state["ladder"]
    # The averages are listed in the order of the parameters, the encoder's first.
    return dict(zip(ladder, state["average"][-len(ladder) :], strict=True)) if "average" in state else ladder


def last_checkpoint(student: FinishedStudent) -> dict[str, Any]:
    """The state of a finished student's last checkpoint.

    Raises:
        DamagedError: what says where it is is not what was written.
        StageError: it is gone, or not what was written.
    """
    entry = last_entry(student)
    path = student.folder / entry.file
    if not path.is_file() or sha256(path.read_bytes()) != entry.digest:
        raise lost_ladder(student, path)
    state: dict[str, Any] = read_file(path)["state"]
    return state
