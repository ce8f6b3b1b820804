"""The ladder of a finished student: what predicts a teacher's tokens from the student's rungs, in the teacher's own units.

A prediction is a sum of MLPs, one per rung, times the std and plus the mean by which the targets were standardized (UNIC,
arXiv 2408.05088, section 3.2). `adaptors.safetensors`, which leaves with every export, has the layout of an imported
checkpoint's `ladder.safetensors`, with the teachers' names here:
`ladder.TEACHER.TOKEN.RUNG.layers.{0,2}.{weight,bias}` and `statistics.TEACHER.TOKEN.{mean,std}`.

Shapes: B images, S image side in pixels, P patch tokens of the student, D width of a rung, E teacher dimension.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.official import Statistics
from unic_pipe.pipeline.encoders.official_export import ladder_from_tensors, ladder_to_tensors
from unic_pipe.pipeline.encoders.official_names import LADDER_FILE, TEACHERS
from unic_pipe.pipeline.encoders.readouts import Tokens
from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.pipeline.storage import sha256
from unic_pipe.pipeline.students.ladder import Ladder, Projector, Rungs
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import ForeignError, StageError, UserError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.students import ExportManifest

FILE = "adaptors.safetensors"


@dataclass(frozen=True)
class Adaptors:
    """Ladders to several teachers, on the CPU."""

    ladder: StateDict
    """By `TEACHER.TOKEN.RUNG.layers.{0,2}.{weight,bias}`."""
    statistics: Statistics

    def to_bytes(self) -> bytes:
        """The file; equal adaptors give equal bytes."""
        from safetensors.torch import save

        tensors = ladder_to_tensors(self.ladder, self.statistics)
        # Copies, because parts of one tensor would be taken for shared memory.
        return save({k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()})

    def projectors(self, teacher: str, tokens: tuple[TokenType, ...]) -> dict[tuple[TokenType, int], Projector]:
        """A teacher's MLPs by token type and rung.

        Raises:
            UserError: there are none.
        """
        found: dict[tuple[TokenType, int], Projector] = {}
        known = set()
        for key in self.ladder:
            name, token, rung, _ = key.rsplit(".", 5)[:4]
            for each in (t for t in tokens if t == token):
                known.add(name)
                if name == teacher:
                    start = f"{name}.{each}.{rung}.layers."
                    parts = (self.ladder[f"{start}{layer}.{kind}"] for layer in (0, 2) for kind in ("weight", "bias"))
                    found[each, int(rung)] = Projector(*parts)
        if not found:
            there = ", ".join(sorted(known)) or "none"
            raise UserError(f"No {' or '.join(tokens)} ladder to teacher {teacher} (there are: {there}).")
        return found


class AdaptedStudent(Encoder):
    """A student with its ladder to one teacher: images in, that teacher's tokens out, in the teacher's own units."""

    model: Student

    def __init__(
        self,
        student: Student,
        definition: EncoderDefinition,
        adaptors: Adaptors,
        teacher: str,
        tokens: tuple[TokenType, ...] = ("cls", "patch"),
    ) -> None:
        """Args:
        student: with its trained weights.
        definition: the exported student's.
        adaptors: its ladders.
        teacher: of an imported official checkpoint, by its name here or there.
        tokens: only these.

        Raises:
            UserError: the student was not trained on any of these tokens of the teacher.
        """
        official = TEACHERS.get(teacher, teacher)
        teacher = official if teacher not in adaptors.statistics and official in adaptors.statistics else teacher
        found = adaptors.projectors(teacher, tokens)
        sizes = {token: len(projector.second_bias_E) for (token, _), projector in found.items()}
        super().__init__(student, definition.model_copy(update={f"{t}_dim": sizes.get(t, 0) for t in ("cls", "patch")}))
        self.ladder = _ladder(found, sizes)
        for token in sizes:
            for name, value in adaptors.statistics[teacher][token].items():
                self.register_buffer(f"{token}_{name}", value.flatten().float())
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x_B3SS: Tensor) -> Tokens:
        """The teacher's tokens as the student predicts them: cls (B, E) and patch (B, P, E) on the student's grid, float32.

        Args:
            x_B3SS: images normalised with the student's mean and std, of the student's size.

        Returns:
            What the student was not trained on has no dimensions: (B, 0) or (B, P, 0).
        """
        outputs = self.model.rung_outputs(x_B3SS, self.ladder.rungs.blocks)
        predictions = self.ladder(*outputs)
        cls_BE, patch_BPE = outputs.cls_LBD[0][..., :0].float(), outputs.patch_LBPD[0][..., :0].float()
        for token, by_teacher in predictions.items():
            [x] = by_teacher.values()
            x = x.float() * self.get_buffer(f"{token}_std") + self.get_buffer(f"{token}_mean")
            cls_BE, patch_BPE = (x, patch_BPE) if token == "cls" else (cls_BE, x)
        return Tokens(cls_BE, patch_BPE)


def _ladder(found: dict[tuple[TokenType, int], Projector], sizes: dict[TokenType, int]) -> Ladder:
    """A ladder to one teacher, which holds the given projectors."""
    blocks = tuple(sorted({rung for _, rung in found}))
    rungs = Rungs(blocks, tuple(len(found[next(iter(sizes)), rung].first_bias_H) for rung in blocks))
    widths = {token: [found[token, rung].first_weight_HD.shape[1] for rung in blocks] for token in sizes}
    with torch.device("meta"):  # an initialisation would draw from global random state
        ladder = Ladder(rungs, widths, {token: {"": size} for token, size in sizes.items()})
    ladder.to_empty(device="cpu")
    ladder.load_projectors({("", token, blocks.index(rung)): projector for (token, rung), projector in found.items()})
    return ladder


def read_adaptors(folder: Path) -> Adaptors:
    """The adaptors in an export, or in the folder of an imported official checkpoint.

    Raises:
        UserError: there are none.
        StageError: they are not those that were exported.
    """
    from safetensors.torch import load

    path, digest = folder / FILE, _listed(folder)
    if digest is None and not path.is_file() and (folder / LADDER_FILE).is_file():
        path = folder / LADDER_FILE
    again = f"Export the student again from its last checkpoint: mv {folder} {folder}.old; unic-pipe distill"
    if not path.is_file():
        why = "gone" if digest is not None else "not there (earlier versions did not write it)"
        raise UserError(f"{path}, which holds the ladder, is {why}.", again)
    raw = path.read_bytes()
    if digest not in (None, sha256(raw)):
        raise StageError(f"{path} is not what was exported.", again)
    return Adaptors(*ladder_from_tensors(load(raw)))


def _listed(folder: Path) -> str | None:
    """Digest of the adaptors in an export's manifest; None where there is none, or no such manifest."""
    path = folder / "manifest.json"
    with suppress(FileNotFoundError, ForeignError):
        return ExportManifest.from_bytes(path.read_bytes(), str(path)).adaptors
    return None
