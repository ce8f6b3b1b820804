"""Saying what differs between two definitions, in the words of the configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_SECRETIVE = {"weights", "dataset", "features", "parent", "labels"}
"""Fields that hold digests: people learn that they changed, not the 64 digits."""

_MEANINGS = {
    "section": "weights are read from there now; none: the first of state_dict, model, teacher",
    "readout": "how cls and patch tokens are read",
    "parent": "the weights that it starts from",
}
"""Fields of encoders that change without a line of the configuration: people learn what they are."""


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """Each differing field as `a.b: old → new` (or `a.b changed` where the values are digests)."""
    found: list[str] = []
    _walk("", old.model_dump(mode="json"), new.model_dump(mode="json"), found)
    return [text.removeprefix("config.") for text in found]


def describe(old: BaseModel, new: BaseModel) -> str:
    """The differences in one line, at most three of them spelled out."""
    found = differences(old, new)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _walk(path: str, old: Any, new: Any, found: list[str]) -> None:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            _walk(f"{path}.{key}" if path else str(key), old.get(key), new.get(key), found)
        return
    meaning = _MEANINGS.get(path.rpartition(".")[2])
    why = f" ({meaning})" if meaning else ""
    before, after = _by_name(old), _by_name(new)
    if before is not None and after is not None:
        _walk(path, before, after, found)
        if before == after:
            found.append(f"{path}: {', '.join(before)} → {', '.join(after)}")
        return
    if isinstance(old or new, dict):
        found.append(f"{path} {'removed' if new is None else 'added'}")
    elif path.rpartition(".")[2] in _SECRETIVE or ".features." in path:
        found.append(f"{path} digest changed{why}")
    else:
        found.append(f"{path}: {_show(old)} → {_show(new)}{why}")


def _by_name(value: Any) -> dict[str, Any] | None:
    """A list of objects with names (teachers) as a mapping."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and "name" in item for item in value):
        return None
    return {item["name"]: item for item in value}


def _show(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
