"""Sizes and times as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from unic_pipe.schemas.errors import UserError

_BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15} | {
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40
}  # fmt: skip
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "days": 86_400, "w": 604_800}


def parse_bytes(text: str) -> float:
    """Bytes of `1TB`, `200 GB`, `1.5TiB`.

    Raises:
        UserError: not a size.
    """
    return _parse(text, _BYTES, "--disk", "1TB or 200GB")


def parse_seconds(text: str) -> float:
    """Seconds of `48h`, `30min`, `3d`.

    Raises:
        UserError: not a time.
    """
    return _parse(text, _SECONDS, "--deadline", "48h, 30min or 3d")


def _parse(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9][0-9,]*\.?[0-9]*)\s*([A-Za-z]*)\s*", text)
    unit = units.get(match[2].lower()) if match is not None else None
    if match is None or unit is None or not float(match[1].replace(",", "")):
        raise UserError(f"{option} {text}: expected for instance {example}.")
    return float(match[1].replace(",", "")) * unit
