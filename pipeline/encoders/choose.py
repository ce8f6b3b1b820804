"""Choosing the weights in a file as its makers meant them: moving averages first, and behind any wrapper that fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from unic_pipe.pipeline.encoders.averages import averaged, unnamed_averages
from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.models import create, fill
from unic_pipe.pipeline.encoders.sections import (
    StateDict,
    all_tensors,
    below,
    named_section,
    sections_like,
    state_dict_of,
    usual_section,
)
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition

_OWN_LAYOUTS = ("unic", "efficientnet-lite")
"""Conversions of one official file, which know where its weights are."""

_LIKELY = 0.5
"""Share of a model's keys that a section must have to be tried where none has all: timm renames some on loading."""


class Chosen(NamedTuple):
    """A model filled from a file, and what was read."""

    model: nn.Module
    section: str | None
    """As in an encoder's definition: None where the usual section was read."""
    shown: str
    """The section for people; empty where the whole file was read."""
    beside: tuple[str, ...]
    """Other sections of the file that hold such weights, whole or for the most part."""


def choose_weights(draft: EncoderDefinition, path: Path, given: str | None = None) -> Chosen:
    """The model of a definition (its `section` aside), filled with the weights that the file means.

    A moving average comes before the weights that it was made of. The usual section comes next; where it does not fit,
    the one section that does. `given` names a section instead.

    Raises:
        UserError: nothing fits, several sections fit equally, or there is no section as given.
    """
    content = read_file(path)
    tensors = all_tensors(content)
    usual: StateDict = {}
    error: UserError | None = None
    try:
        usual = state_dict_of(content, path)
    except UserError as no_weights:
        error = no_weights
    model = section = None
    if given is not None:
        section = named_section(tensors, given, path)
    elif draft.conversion not in _OWN_LAYOUTS:
        section = next((s for s in sections_like(tensors, usual) if averaged(s, tensors)), None)
    if given is None and error is None:
        try:
            model = fill(draft, usual if section is None else state_dict_of(content, path, section), path)
        except UserError as misfit:
            section, error = None, misfit
    if section is None and error is not None:
        section = _fitting(draft, tensors, path, error)
    state = usual if section is None else state_dict_of(content, path, section)
    if len(state) == len(usual) and _same(state, usual):
        section = None
    model = model or fill(draft, state, path)
    others = [s for s in sections_like(tensors, state, _LIKELY) if not _same(below(tensors, s), state)]
    shown = usual_section(content) if section is None else section
    lists = [name for name, _ in unnamed_averages(content) if not below(tensors, name)]
    return Chosen(model, section, shown, (*others, *(f"{name}, a list without names" for name in lists)))


def _fitting(draft: EncoderDefinition, tensors: StateDict, path: Path, error: UserError) -> str:
    """The section whose keys are the model's; `error` says why the usual one is not."""
    if draft.conversion in _OWN_LAYOUTS:
        raise error
    with torch.random.fork_rng(devices=[]):
        own = create(draft.architecture, draft.model_args, draft.image_size).state_dict()
    # Position embeddings of another size are resampled, so that shapes only decide between equals.
    named = sections_like(tensors, own, shapes=False) or sections_like(tensors, own, _LIKELY, shapes=False)
    found = [s for s in sections_like(tensors, own, _LIKELY) if s in named] or named
    found = [s for s in found if averaged(s, tensors)][:1] or found
    if not found:
        raise error
    if len(found) > 1:
        raise UserError(
            f"{path} holds {draft.architecture} more than once: {', '.join(f'{s}.' for s in found)}",
            f"Say which, for instance: `prefix: {found[0]}.`",
        )
    return found[0]


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether both are the same tensors of the file; what stands beside a wrapped backbone is left aside."""
    return bool(other) and all(one.get(key) is value for key, value in other.items())
