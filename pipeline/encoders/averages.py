"""Moving averages in weights files: which sections are one, and what those leave out that average parameters alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_AVERAGE = re.compile(r"(^|(?<!exp)_)(ema|swa|avg|averaged?|polyak|shadow)(_|$)")
"""In a section's name; `exp_avg` is Adam's."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Of BatchNorm; they are no parameters."""

_MODULES = 3
"""Parts of a key that are looked at for the module whose parameters were averaged: `model.`, `net.model.`."""


def averaged(section: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a section holds a moving average: by its name, or because it is the teacher beside a student."""
    parts = section.split(".")
    if any(_AVERAGE.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()) for part in parts):
        return True
    if "teacher" not in parts:
        return False
    student = ".".join([*parts[: parts.index("teacher")], "student", ""])
    return any(key.startswith(student) for key in tensors)


def completed(
    tensors: Mapping[str, torch.Tensor], content: Mapping[Any, Any], usual: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """All tensors of a file, the averages among them with what they lack: names, where they are a list in the order of the
    parameters; dots in the names; BatchNorm's buffers. `usual` are the weights that were averaged, none where unknown."""
    own = {key: value for key, value in usual.items() if not averaged(key.rpartition(".")[0], {})}
    parameters = {key: value for key, value in own.items() if key.rpartition(".")[2] not in _BUFFERS}
    buffers = {key: value for key, value in own.items() if key not in parameters}
    found = dict(tensors)
    for section, values in unnamed_averages(content):
        if [value.shape for value in values] == [value.shape for value in parameters.values()]:
            found |= {f"{section}.{key}": value for key, value in zip(parameters, values, strict=True)}
    dotted = {key[cut:].replace(".", ""): key[cut:] for key in own for cut in _starts(key)}
    for key, value in tensors.items():
        section, _, name = key.rpartition(".")
        if not averaged(section, {}):
            continue
        if name in dotted:
            found[f"{section}.{dotted[name]}"] = found.pop(key)
        elif not value.ndim:
            del found[key]  # counters and decay rates
    return _with_buffers(found, [*parameters], buffers)


def _with_buffers(
    found: dict[str, torch.Tensor], parameters: Sequence[str], buffers: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Averages of most parameters, or of most of those of a module, with the buffers that these have beside them.

    Less than that may be a layer, and others have the same names in it.
    """
    most = len(parameters) / 2
    for module in sorted({buffer[:cut] for buffer in buffers for cut in _starts(buffer)[:_MODULES]}):
        names = {key.removeprefix(module) for key in parameters if key.startswith(module)}
        inner = {key.removeprefix(module): value for key, value in buffers.items() if key.startswith(module)}
        counts = Counter(key[: cut - 1] for key in found for cut in _starts(key)[1:] if key[cut:] in names)
        for section in [section for section, count in counts.items() if count >= most and averaged(section, {})]:
            found = {f"{section}.{name}": value for name, value in inner.items()} | found
    return found


def unnamed_averages(content: Mapping[Any, Any]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Sections that are an average by their name, and hold a list of tensors."""
    waiting, seen = [("", content)], {id(content)}
    while waiting:
        above, mapping = waiting.pop()
        for key, value in mapping.items():
            section = f"{above}{key}"
            if isinstance(value, Mapping):
                # A hostile file may hold itself.
                if not section.startswith("optim") and id(value) not in seen:
                    seen.add(id(value))
                    waiting.append((f"{section}.", value))
                continue
            if not isinstance(value, list | tuple) or not averaged(section, {}):
                continue
            tensors = [each for each in value if isinstance(each, torch.Tensor)]
            if tensors and len(tensors) == len(value):
                yield section, tensors


def _starts(key: str) -> list[int]:
    """Where a key and each of its later parts begin."""
    return [0, *(at + 1 for at, char in enumerate(key) if char == ".")]
