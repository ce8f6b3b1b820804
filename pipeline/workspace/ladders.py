"""The ladder of a finished student as it is on disk: projectors and the statistics that its targets were standardized with.

One teacher's part of it predicts that teacher's own cls feature from the outputs of the student's blocks (UNIC, arXiv
2408.05088, section 3.2): a sum of MLPs, one per rung, times the teacher's std, plus its mean.

Shapes: B images, S image side in pixels, D student width, H hidden width of a rung, E teacher dimension.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unic_pipe.pipeline.cache.statistics import standardization
from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.official import TOKENS, Statistics
from unic_pipe.pipeline.encoders.official_export import official_ladder, official_names, read_folder
from unic_pipe.pipeline.encoders.official_names import TEACHERS
from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.pipeline.storage import sha256
from unic_pipe.pipeline.workspace.documents import FinishedStudent, last_entry, lost_ladder, read_document
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import LadderConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import StatisticsDocument


class TeacherPrediction(nn.Module):
    """A student with its ladder to one teacher: images in, the teacher's cls feature out."""

    def __init__(self, encoder: Encoder, ladder: StateDict, statistics: Statistics, teacher: str) -> None:
        """Args:
        encoder: the student's vision transformer.
        ladder: projectors under their official names, `TEACHER.cls.BLOCK.layers.{0,2}.{weight,bias}`.
        statistics: mean and std by official teacher name and token type.
        teacher: the official name.

        Raises:
            UserError: the ladder has no cls projectors to this teacher.
        """
        super().__init__()
        self.encoder = encoder
        mine = {k.removeprefix(f"{teacher}.cls."): v for k, v in ladder.items() if k.startswith(f"{teacher}.cls.")}
        if not mine or teacher not in statistics:
            known = ", ".join(sorted({key.rsplit(".", 5)[0] for key in ladder if ".cls." in key})) or "none"
            raise UserError(f"No cls ladder to teacher {teacher} (there are: {known}).")
        self.blocks = sorted({int(key.partition(".")[0]) for key in mine})
        for key, value in mine.items():
            self.register_buffer(key.replace(".", "_"), value.float())
        self.register_buffer("mean_E", statistics[teacher]["cls"]["mean"].flatten().float())
        self.register_buffer("std_E", statistics[teacher]["cls"]["std"].flatten().float())

    @property
    def dim(self) -> int:
        """E."""
        return len(self._own("mean_E"))

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Tensor:
        """Predicted cls features (B, E), no longer standardized, of normalised images of the student's size."""
        model: Any = self.encoder.model
        pairs = model.forward_intermediates(
            x_B3SS, indices=self.blocks, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        found = [self._rung(block, prefix[:, 0].float()) for block, (_, prefix) in zip(self.blocks, pairs, strict=True)]
        return torch.stack(found).sum(0) * self._own("std_E") + self._own("mean_E")

    def _rung(self, block: int, x_BD: Tensor) -> Tensor:
        first_HD, first_bias_H, second_EH, second_bias_E = (
            self._own(f"{block}_layers_{place}_{kind}") for place in (0, 2) for kind in ("weight", "bias")
        )
        return F.linear(F.gelu(F.linear(x_BD, first_HD, first_bias_H)), second_EH, second_bias_E)

    def _own(self, name: str) -> Tensor:
        return self.get_buffer(name)


def predict_teacher(student: FinishedStudent, encoder: Encoder, teacher: str) -> TeacherPrediction:
    """A finished student of ours with its ladder to one of its teachers; `encoder` is its export, loaded.

    Raises:
        UserError: the student was not trained on that teacher's cls tokens.
        StageError: the last checkpoint, which holds the ladder, is gone or damaged.
    """
    definition = student.manifest.definition
    teachers = [t.name for t in definition.teachers]
    if teacher not in teachers:
        raise UserError(f"Student {student.name} has no teacher {teacher} (it has: {', '.join(teachers)}).")
    model: Any = encoder.model
    state, names = last_checkpoint(student), official_names(teachers)
    ladder = official_ladder(ladder_state(state), teachers, rung_blocks(definition.config.ladder, len(model.blocks)))
    statistics = statistics_of(student, names, state.get("running", {}))
    return TeacherPrediction(encoder, ladder, statistics, names[teacher])


def predict_imported(folder: Path, encoder: Encoder, teacher: str) -> TeacherPrediction:
    """An official UNIC checkpoint that was imported as `encoders/NAME`, with its ladder to a teacher.

    `teacher` is the name here (`metaclip-h`) or in the official code (`metaclip_vithuge_14`).
    Raises UserError: no ladder there, or none to this teacher.
    """
    checkpoint = read_folder(folder, encoder.model)
    return TeacherPrediction(encoder, checkpoint.ladder, checkpoint.statistics, TEACHERS.get(teacher, teacher))


def rung_blocks(ladder: LadderConfig, depth: int) -> tuple[int, ...]:
    """Encoder blocks that feed a ladder."""
    if isinstance(ladder.blocks, tuple):
        return tuple(sorted(ladder.blocks))
    return tuple(range(depth)) if ladder.blocks == "all" else (depth - 1,)


def statistics_of(student: FinishedStudent, names: dict[str, str], running: Mapping[str, Any]) -> Statistics:
    """Mean and std of every target as float32: running or exact ones, or 0 and 1 where targets were not standardized.

    Raises:
        DamagedError: statistics that the student was trained with are not what was written.
        StageError: they are gone, or another document's.
    """
    found: Statistics = {}
    for teacher in student.manifest.definition.teachers:
        document = _frozen_statistics(student, teacher.name)
        exact = {} if document is None else {"cls": document.cls, "patch": document.patch}
        both = found[names[teacher.name]] = {}
        for token, size in zip(TOKENS, (teacher.cls_dim, teacher.patch_dim), strict=True):
            known, moving = exact.get(token), running.get(teacher.name, {}).get(token)
            mean_D, std_D = torch.zeros(size), torch.ones(size)
            if known is not None:
                mean_D, std_D = (torch.from_numpy(value) for value in standardization(known))
            elif moving is not None:
                mean_D, std_D = moving["mean"], moving["std"]
            shape = (1, size) if token == "cls" else (1, 1, size)
            both[token] = {"mean": mean_D.float().reshape(shape), "std": std_D.float().reshape(shape)}
    return found


def _frozen_statistics(student: FinishedStudent, teacher: str) -> StatisticsDocument | None:
    """The statistics that the manifest names; None where it names none."""
    digest = student.manifest.statistics.get(teacher)
    if digest is None:
        return None
    path = student.folder / "statistics" / f"{teacher}.json"
    document = read_document(path, StatisticsDocument)
    if document is None or digest_of(document) != digest:
        raise StageError(
            f"{path}: the statistics that student {student.name} was trained with are "
            f"{'gone' if document is None else 'not those of its manifest'}.",
            f"Restore them, or train it again: mv {student.folder} {student.folder}.old; "
            f"unic-pipe distill --student {student.name}",
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
