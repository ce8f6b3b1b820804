"""Which of the tensors in a weights file are the weights.

Files hold them under sections (`state_dict`, `model_ema`), behind wrappers (`module.`, `teacher.backbone.`), once or
several times over. Sections and wrappers are treated alike here: the content is spread out, its keys joined by dots, and
what stands before the weights' own keys is one prefix, such as `state_dict.model` (given without its last dot).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unic_pipe.pipeline.encoders.averages import completed
from unic_pipe.schemas.errors import UserError

StateDict = dict[str, torch.Tensor]

_USUAL = ("state_dict", "model", "teacher")
"""Where training scripts put the weights beside optimizer state and counters, in the order of preference."""

_WRAPPERS = ("module.", "_orig_mod.", "backbone.")
"""DistributedDataParallel, torch.compile, and DINO's and iBOT's multi-crop wrapper."""

_DEPTH = 4
"""Sections inside sections that are looked into."""

_SHOWN = 6


def state_dict_of(content: Mapping[str, Any], path: Path, section: str | None = None) -> StateDict:
    """The tensors of a file's content below `section`, without wrappers' prefixes.

    None is the first of the usual sections `state_dict`, `model` and `teacher`, or else the whole file.

    Raises:
        UserError: there are no tensors.
    """
    if section is not None:
        return _unwrapped(below(all_tensors(content), section))
    inner = content.get(usual_section(content), content)
    state = {str(key): value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    if not state:
        held = ", ".join(map(str, list(content)[:_SHOWN])) or "nothing"
        raise UserError(f"{path}: no weights in it (it holds {held}).", "Is this the checkpoint that you meant?")
    return _unwrapped(state)


def all_tensors(content: Mapping[str, Any]) -> StateDict:
    """All tensors of a file but optimizers', by their joined keys; averages of parameters alone as whole sets of weights."""
    inner = content.get(usual_section(content), content)
    usual = {str(key): value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    return completed(spread(content), content, _unwrapped(usual))


def usual_section(content: Mapping[str, Any]) -> str:
    """The first usual section that holds tensors; empty where they are the file itself."""
    for name in _USUAL:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            return name
    return ""


def spread(content: Mapping[Any, Any], depth: int = _DEPTH) -> StateDict:
    """All tensors of nested sections but optimizers' by their joined keys, in the order of the file."""
    found: StateDict = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[str(key)] = value
        elif isinstance(value, Mapping) and depth and not str(key).startswith("optim"):
            found |= {f"{key}.{inner}": tensor for inner, tensor in spread(value, depth - 1).items()}
    return found


def below(tensors: Mapping[str, torch.Tensor], section: str) -> StateDict:
    """The tensors whose keys begin with a section, without it; all of them for an empty one."""
    start = f"{section}." if section else ""
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def sections_like(
    tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], share: float = 1.0, shapes: bool = True
) -> list[str]:
    """The sections that have at least a `share` of the keys in `own` (in these shapes), the fullest first."""
    counts: Counter[str] = Counter()
    for key, value in tensors.items():
        parts = key.split(".")
        for cut in range(len(parts)):
            like = own.get(".".join(parts[cut:]))
            if like is not None and (not shapes or like.shape == value.shape):
                counts[".".join(parts[:cut])] += 1
    return [section for section, count in counts.most_common() if count >= share * len(own)]


def named_section(tensors: Mapping[str, torch.Tensor], given: str, path: Path) -> str:
    """The section that `prefix:` names, from the file's beginning or from that of one of its sections.

    Raises:
        UserError: no key begins so, or those of several sections do.
    """
    wanted = given.rstrip(".")
    if not wanted or any(key.startswith(f"{wanted}.") for key in tensors):
        return wanted
    heads = {key.partition(f".{wanted}.")[0] for key in tensors if f".{wanted}." in key}
    found = sorted(f"{head}.{wanted}" for head in heads)
    if len(found) == 1:
        return found[0]
    starts = dict.fromkeys(key.rpartition(".")[0].partition(".")[0] for key in tensors)
    raise UserError(
        f"{path}: {'several keys begin' if found else 'no key begins'} with prefix {given!r}.",
        f"There are: {', '.join((found or [s for s in starts if s])[:_SHOWN])}.",
    )


def _unwrapped(state: StateDict) -> StateDict:
    """Strip wrappers' prefixes; what stands beside a wrapped backbone (projection heads) is dropped."""
    while True:
        prefix = next((p for p in _WRAPPERS if any(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
