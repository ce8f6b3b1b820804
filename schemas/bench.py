"""What `bench --json` prints."""

from __future__ import annotations

from schemas.base import Model


class ScaleRow(Model):
    """A command over a simulated dataset."""

    name: str
    rows: int
    seconds: float
    """Wall time of the process, with its start."""
    peak_bytes: int
    """The most memory that the process held; 0 where the system does not say."""
