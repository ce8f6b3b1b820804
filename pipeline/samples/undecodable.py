"""Images that cannot be used, and why. Apart from decoding, so that opening an index imports no image library."""

from __future__ import annotations

DELETED = "deleted after it was indexed"
"""The reason of rows whose image was deleted; they are no fault of the data."""


class UndecodableImage(Exception):
    """Bytes that are not an image that can be used. `reason` is short and the same for the same bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UndecodableImage], tuple[str]]:
        return type(self), (self.reason,)
