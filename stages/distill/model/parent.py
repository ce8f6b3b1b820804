"""Starting from another student (`init: NAME`): its exported encoder, and its ladder as far as it fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.pipeline.students.heads.heads import Heads
from unic_pipe.pipeline.students.ladder import Projector
from unic_pipe.pipeline.students.student import Student
from unic_pipe.pipeline.workspace.documents import FinishedStudent
from unic_pipe.pipeline.workspace.starts import refuse_other_architecture
from unic_pipe.schemas.base import short
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.stages.distill.checkpoints import Checkpoints
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.model.warm import some

Projectors = dict[tuple[str, TokenType, int], Projector]


def start_from(
    parent: FinishedStudent, name: str, model: Distiller, teachers: tuple[str, ...], say: Callable[[str], None]
) -> None:
    """Give a model at its initialisation the weights of a finished student.

    Teachers are matched by their order; where dimensions or rungs differ the projectors stay fresh, and that is said.

    Raises:
        UserError: another architecture.
        StageError: the parent's files are damaged.
    """
    refuse_other_architecture(name, model.config, parent.name, parent.manifest.definition.config)
    remark = _load_encoder(model.student, parent, model.config.image_size)
    say(f"{name}: starts from student {parent.name} ({short(parent.export.weights)}){remark}")
    old = _old_model(parent, say)
    if old is None:
        say(f"{name}: {parent.name} has no usable checkpoint left, so the ladder starts afresh.")
        return
    fresh = _take_ladder(model, teachers, old)
    if fresh:
        say(f"{name}: the ladder does not fit {parent.name}'s for {', '.join(fresh)}: it starts afresh there.")


def _load_encoder(student: Student, parent: FinishedStudent, image_size: int) -> str:
    """Load the exported weights; a remark on what was resampled."""
    from safetensors.torch import load

    file = parent.folder / "export" / "model.safetensors"
    raw = file.read_bytes()
    if sha256(raw) != parent.export.weights:
        raise StageError(f"{file} is not what was exported.", "unic-pipe verify says more.")
    state, remark = student.fitted(load(raw))
    own = student.state()
    if others := [name for name, x in own.items() if name in state and x.shape != state[name].shape]:
        # Biases by relative position: as timm resamples them where an encoder is read at another size.
        state = load_encoder(file.parent, image_size=image_size).model.state_dict()
        remark = f"; resampled: {some(others)}"
    student.load(state)
    return remark


def _old_model(parent: FinishedStudent, say: Callable[[str], None]) -> Distiller | None:
    """The parent with its ladder as it was exported, or None when its last checkpoint is gone."""
    manifest, config = parent.manifest, parent.manifest.definition.config
    checkpoints = Checkpoints(LocalStore(Path(parent.folder)), manifest.digest, manifest.rows_digest, 1, say)
    found = checkpoints.load()
    if found is None or found[0] != manifest.steps:
        return None
    model, ladder = Distiller(config, manifest.definition.teachers, torch.device("cpu")), found[1]["ladder"]
    if config.ema is not None:
        # The averages are those of the encoder, then those of the ladder's parameters.
        names = [name for name, _ in model.ladder.named_parameters()]
        ladder = dict(zip(names, found[1]["average"][-len(names) :], strict=True))
    model.ladder.load_state_dict(ladder)
    return model


def _take_ladder(model: Distiller, teachers: tuple[str, ...], old: Distiller) -> list[str]:
    """Copy the projectors that fit; the others' names (`teacher token`)."""
    old_teachers = tuple(dict.fromkeys(teacher for teacher, _ in old.standards))
    if isinstance(model.ladder, Heads) or isinstance(old.ladder, Heads):
        return _take_heads(model, teachers, old, old_teachers)
    mine, theirs = model.ladder.to_projectors(), old.ladder.to_projectors()
    same_rungs = model.ladder.rungs == old.ladder.rungs
    taken: Projectors = {}
    fresh: dict[str, None] = {}
    for teacher, token, place in mine:
        order = teachers.index(teacher)
        other = old_teachers[order] if order < len(old_teachers) else None
        projector = theirs.get((other, token, place)) if other is not None and same_rungs else None
        if projector is not None and _shapes(projector) == _shapes(mine[teacher, token, place]):
            taken[teacher, token, place] = projector
        else:
            fresh[f"{teacher} {token}"] = None
    model.ladder.load_projectors({**mine, **taken})
    return list(fresh)


def _take_heads(
    model: Distiller, teachers: tuple[str, ...], old: Distiller, old_teachers: tuple[str, ...]
) -> list[str]:
    """Copy the heads that fit; the others' names."""
    same_kind = model.config.ladder.kind == old.config.ladder.kind and isinstance(old.ladder, Heads)
    theirs = old.ladder.states() if isinstance(old.ladder, Heads) and same_kind else {}
    order = dict(zip(teachers, old_teachers, strict=False))
    if not isinstance(model.ladder, Heads):
        return [f"{teacher} {token}" for teacher, token in model.standards]
    taken, fresh = {}, []
    for (teacher, key), mine in model.ladder.states().items():
        other = theirs.get((order.get(teacher, ""), key), {})
        if {name: x.shape for name, x in other.items()} == {name: x.shape for name, x in mine.items()}:
            taken[teacher, key] = other
        else:
            fresh.append(f"{teacher} {key}")
    model.ladder.load_states(taken)
    return fresh


def _shapes(projector: Projector) -> list[torch.Size]:
    return [tensor.shape for tensor in projector]
