"""Downloading benchmarks through torchvision: the only place that does, and only when it is asked to."""

from __future__ import annotations

from collections.abc import Callable

from unic_pipe.pipeline.benchmarks.catalogue import BenchmarkRow
from unic_pipe.schemas.errors import StageError, UserError


def download(row: BenchmarkRow, say: Callable[[str], None] = print) -> None:
    """Download what is missing of a benchmark into the folder in which it is searched.

    Raises:
        UserError: torchvision has no download of it; the hint says where to get it.
        StageError: the download failed.
    """
    card = row.card
    if row.here:
        say(f"{row.name}: nothing is missing.")
        return
    if card.torchvision is None:
        raise UserError(
            f"{row.name} has no download that a program may use.",
            f"Get {card.get} ({card.source}), and put it into {row.base}",
        )
    from torchvision import datasets

    say(f"{row.name}: downloading into {row.base} (licence: {card.licence})")
    row.base.mkdir(parents=True, exist_ok=True)
    try:
        getattr(datasets, card.torchvision)(root=row.base, download=True)
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"{row.name}: the download failed ({error}).",
            f"Try again, or get {card.get} by hand ({card.source}), and put it into {row.base}",
        ) from error
