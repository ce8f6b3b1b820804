"""Provenance: what ran, where, when and with which versions. Outside every identity and byte comparison (R2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from unic_pipe.schemas.base import Document


class RunDocument(Document):
    """`runs/<time>-<stage>-<host>-<pid>.json`, rewritten every few seconds while the stage runs."""

    KIND: ClassVar[str] = "run"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    stage: str
    command: str
    host: str
    pid: int
    started: str
    """UTC, ISO 8601."""
    updated: str
    state: Literal["running", "done", "stopped", "failed"]
    title: str = ""
    """What is being worked on, for instance `extract train`."""
    done: int = 0
    total: int = 0
    unit: str = "img"
    rate: float = 0.0
    """Units per second since the current piece of work began."""
    eta_s: float | None = None
    note: str = ""
    """The latest live remark, such as the loss."""
    message: str = ""
    """Why it failed."""
    versions: dict[str, str] = {}
