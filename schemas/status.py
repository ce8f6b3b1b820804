"""What machines read: the objects that `--json` prints."""

from __future__ import annotations

from typing import Literal

from schemas.base import Model

Stage = Literal["index", "extract", "distill", "evaluate"]
State = Literal["fresh", "partial", "stale", "missing"]


class Artefact(Model):
    """One artefact as `status` sees it."""

    name: str
    """For instance `features/train/dino` or `students/main`."""
    stage: Stage
    state: State
    done: int
    total: int
    reason: str
    """Why it is stale, what is missing, or a note; empty when there is nothing to say."""
    digest: str | None
    next: str | None
    """The command that makes it fresh."""
    path: str | None = None
    """Folder, relative to the working folder."""
    coverage: dict[str, tuple[int, ...]] = {}
    """Of features: finished blocks of each view, by token type."""
    waits_for: tuple[str, ...] = ()
    """Artefacts that have to be fresh before this one can be begun."""


class StatusReport(Model):
    """`unic-pipe status --json`."""

    artefacts: tuple[Artefact, ...]
    next: str | None


class Problem(Model):
    """One damaged or missing file, as `verify` found it."""

    path: str
    teacher: str | None
    token: str | None
    view: int | None
    block: int | None
    kind: str
    """`missing`, `size`, `content`, `record`, `metadata`, `document`, `live`, `unexpected` (a file that nothing here wrote)."""


class LiveFinding(Model):
    """A teacher that was run again on cached samples; errors are root mean squares in standard deviations."""

    teacher: str
    dataset: str
    token: str
    samples: int
    mean_error: float
    max_error: float
    mean_allowed: float
    max_allowed: float
    ok: bool


class VerifyReport(Model):
    """`unic-pipe verify --json`."""

    ok: bool
    checked: int
    problems: tuple[Problem, ...]
    live: tuple[LiveFinding, ...] = ()
    """With `--live`: one per teacher, dataset and token type that could be run."""
    skipped: tuple[str, ...] = ()
    """With `--live`: teachers that could not be run, and why."""
