"""What `unic-pipe teachers` shows: every named encoder and every configured one, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import find_weights, install_command
from unic_pipe.pipeline.encoders.registry import REGISTRY, parse_choice
from unic_pipe.pipeline.encoders.resolve import ResolvedEncoder, encoder_card, find_file, resolve_encoder
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True)
class CatalogueRow:
    """One encoder: where its weights are or why they are not, and the line that configures it."""

    name: str
    architecture: str
    source: str
    licence: str
    path: Path | None
    digest: str | None
    """SHA-256 of the weights file."""
    problem: str | None
    """Why there is no path."""
    yaml: str
    """Line under `teachers:` in unic-pipe.yaml."""
    configured: bool
    card: EncoderCard | None
    """For `fetch_weights`; None where there is nothing to download."""
    unknown: bool = False
    """Whether a configured name means no encoder at all."""
    repository: str | None = None
    """For `fetch_repository`; None where the encoder is none of a hub's."""
    resolved: ResolvedEncoder | None = None
    """A configured encoder whose weights are here and fit."""


def catalogue(
    teachers: Mapping[str, EncoderConfig], weights_dir: Path, workdir: Path | None = None
) -> list[CatalogueRow]:
    """Rows of the configured teachers, then of the named encoders that are not among them.

    Found weights are hashed, which takes a second per gigabyte; those of configured teachers are loaded once, to say how
    they are read. Nothing is downloaded.
    """
    rows = [
        _resolved(_configured(name, config, weights_dir, workdir), config, weights_dir, workdir)
        for name, config in teachers.items()
    ]
    shown = {row.card.name for row in rows if row.card is not None}
    rows += [
        _row(name, card, f"{name}: {{}}", weights_dir, False) for name, card in REGISTRY.items() if name not in shown
    ]
    return rows


def _configured(name: str, config: EncoderConfig, weights_dir: Path, workdir: Path | None) -> CatalogueRow:
    fields = config.model_dump(mode="json", exclude_defaults=True)
    yaml = f"{name}: {{{', '.join(f'{k}: {v}' for k, v in fields.items())}}}"
    unknown, repository = True, None
    try:
        kind, target = parse_choice(config.encoder or name)
        unknown, repository = False, target if kind == "hub" else None
        card = encoder_card(kind, target, weights_dir, workdir) if kind in ("registry", "timm") else None
        if card is not None and config.weights is None:
            return _row(name, card, yaml, weights_dir, True)
        path = find_file(config, name, weights_dir, workdir)
        problem = None
    except UserError as error:
        card, path, problem, target = None, None, error.message, config.encoder or name
    return CatalogueRow(
        name=name,
        architecture=config.architecture or (card.architecture if card else "-"),
        source=config.weights or target,
        licence="unknown",
        path=path,
        digest=sha256_of_file(path) if path else None,
        problem=problem,
        yaml=yaml,
        configured=True,
        card=None,
        unknown=unknown,
        repository=repository,
    )


def _resolved(row: CatalogueRow, config: EncoderConfig, weights_dir: Path, workdir: Path | None) -> CatalogueRow:
    """The row with how its encoder is read, or with why it cannot be."""
    if row.problem is not None:
        return row
    try:
        resolved = resolve_encoder(row.name, config, weights_dir, workdir)
    except UserError as error:
        return replace(row, problem=error.message)
    return replace(row, resolved=resolved, licence=resolved.licence if row.repository else row.licence)


def _row(name: str, card: EncoderCard, yaml: str, weights_dir: Path, configured: bool) -> CatalogueRow:
    path = find_weights(card, weights_dir)
    return CatalogueRow(
        name=name,
        architecture=card.architecture,
        source=card.source,
        licence=card.licence,
        path=path,
        digest=sha256_of_file(path) if path else None,
        problem=None if path else (f"missing: {install_command(card)}" if card.package else "missing"),
        yaml=yaml,
        configured=configured,
        card=card,
    )
