"""The ladder of a finished student: what predicts a teacher's tokens from the student's rungs, in the teacher's own units.

A prediction is a sum of MLPs, one per rung, times the std and plus the mean by which the targets were standardized (UNIC,
arXiv 2408.05088, section 3.2). `adaptors.safetensors`, which leaves with every export, has the layout of an imported
checkpoint's `ladder.safetensors`, with the teachers' names here:
`ladder.TEACHER.TOKEN.RUNG.layers.{0,2}.{weight,bias}` and `statistics.TEACHER.TOKEN.{mean,std}`. Other heads have
`heads/TEACHER/TOKEN/KEY` instead (TOKEN `both` where one is for both), and their settings as metadata `head`.

Shapes: B images, S image side in pixels, P patch tokens of the student, D width of a rung, E teacher dimension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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
from unic_pipe.pipeline.students.heads.heads import Heads, Predictor, inputs
from unic_pipe.pipeline.students.ladder import Ladder, Projector, Rungs
from unic_pipe.pipeline.students.student import Student
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import ForeignError, StageError, UserError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.heads import LadderConfig
from unic_pipe.schemas.students import ExportManifest

FILE = "adaptors.safetensors"
_HEADS, _HEAD = "heads/", "head"


@dataclass(frozen=True)
class Adaptors:
    """Ladders to several teachers, on the CPU."""

    ladder: StateDict
    """By `TEACHER.TOKEN.RUNG.layers.{0,2}.{weight,bias}`."""
    statistics: Statistics
    heads: Mapping[tuple[str, str], StateDict] = field(default_factory=dict)
    """By teacher and token type (or `both`), where they are no ladder."""
    config: LadderConfig | None = None
    """What the heads are."""

    def to_bytes(self) -> bytes:
        """The file; equal adaptors give equal bytes."""
        from safetensors.torch import save

        tensors = ladder_to_tensors(self.ladder, self.statistics)
        tensors |= {
            f"{_HEADS}{t}/{key}/{name}": x for (t, key), state in self.heads.items() for name, x in state.items()
        }
        about = None if self.config is None else {_HEAD: self.config.model_dump_json(exclude_defaults=True)}
        # Copies, because parts of one tensor would be taken for shared memory.
        copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        return save(copies, about)

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
            raise _no_ladder(teacher, tokens, known)
        return found

    def heads_to(self, student: Student, teacher: str, tokens: tuple[TokenType, ...]) -> Heads:
        """The heads to one teacher.

        Raises:
            UserError: there are none.
        """
        assert self.config is not None
        mine = {key: state for (name, key), state in self.heads.items() if name == teacher}
        dims: dict[TokenType, dict[str, int]] = {
            token: {teacher: self.statistics[teacher][token]["mean"].numel()}
            for token in ("cls", "patch")
            if (token in tokens and token in mine) or "both" in mine
        }
        if not dims:
            raise _no_ladder(teacher, tokens, {name for name, key in self.heads if key in tokens})
        widths = {token: every[-1] for token, every in student.widths.items()}
        with torch.device("meta"):  # an initialisation would draw from global random state
            heads = Heads(self.config, student.depth, widths, dims)
        heads.to_empty(device="cpu")
        heads.load_states({(teacher, key): state for key, state in mine.items() if key in heads.heads})
        return heads


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
        self.ladder: Predictor
        if adaptors.config is not None:
            heads = adaptors.heads_to(student, teacher, tokens)
            known = (t for t in tokens if t in heads.predicted)
            sizes = {token: adaptors.statistics[teacher][token]["mean"].numel() for token in known}
            predictor: Predictor = heads
        else:
            found = adaptors.projectors(teacher, tokens)
            sizes = {token: len(projector.second_bias_E) for (token, _), projector in found.items()}
            predictor = _ladder(found, sizes)
        super().__init__(student, definition.model_copy(update={f"{t}_dim": sizes.get(t, 0) for t in ("cls", "patch")}))
        self.ladder = predictor
        self.tokens = tuple(sizes)
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
        predictions = self.ladder(*inputs(self.model, self.ladder, outputs))
        cls_BE, patch_BPE = outputs.cls_LBD[0][..., :0].float(), outputs.patch_LBPD[0][..., :0].float()
        for token, by_teacher in ((t, predictions[t]) for t in self.tokens):
            [x] = by_teacher.values()
            x = x.float() * self.get_buffer(f"{token}_std") + self.get_buffer(f"{token}_mean")
            cls_BE, patch_BPE = (x, patch_BPE) if token == "cls" else (cls_BE, x)
        return Tokens(cls_BE, patch_BPE)


def _no_ladder(teacher: str, tokens: tuple[TokenType, ...], known: set[str]) -> UserError:
    there = ", ".join(sorted(known)) or "none"
    return UserError(f"No {' or '.join(tokens)} ladder to teacher {teacher} (there are: {there}).")


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
        why = "gone" if digest is not None else "not there (left out, or exported by an earlier version)"
        raise UserError(f"{path}, which holds the ladder, is {why}.", again)
    raw = path.read_bytes()
    if digest not in (None, sha256(raw)):
        raise StageError(f"{path} is not what was exported.", again)
    tensors = load(raw)
    about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    if _HEAD not in about:
        return Adaptors(*ladder_from_tensors(tensors))
    heads: dict[tuple[str, str], StateDict] = {}
    for place in (key for key in tensors if key.startswith(_HEADS)):
        teacher, token, name = place.removeprefix(_HEADS).split("/")
        heads.setdefault((teacher, token), {})[name] = tensors[place]
    return Adaptors({}, ladder_from_tensors(tensors)[1], heads, LadderConfig.model_validate_json(about[_HEAD]))


def _listed(folder: Path) -> str | None:
    """Digest of the adaptors in an export's manifest; None where there is none, or no such manifest."""
    path = folder / "manifest.json"
    with suppress(FileNotFoundError, ForeignError):
        return ExportManifest.from_bytes(path.read_bytes(), str(path)).adaptors
    return None
