"""What is known of benchmarks beyond their results: the group of one that has a name, why one cannot be run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pipeline import probing
from pipeline.inventory import Inventory


def axis_of(benchmark: str) -> str:
    """The axis of a benchmark of the registry, such as `fine-grained`; empty for one that has no entry there."""
    try:
        registry: Any = importlib.import_module("schemas.benchmarks")
    except ModuleNotFoundError:
        return ""
    card = registry.cards().get(benchmark)
    return str(card.axis) if card is not None else ""


def reasons_of(inventory: Inventory) -> Mapping[str, str]:
    """Why benchmarks cannot be run now, by name."""
    pairs: Any = getattr(probing, "benchmark_pairs", None)
    reasons: Mapping[str, str] = pairs(inventory)[1] if pairs is not None else {}
    return reasons
