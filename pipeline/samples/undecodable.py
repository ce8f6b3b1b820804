"""Images that cannot be used, and why. Apart from decoding, so that opening an index imports no image library."""

DELETED = "deleted after it was indexed"
"""The reason of rows whose image was deleted; they are no fault of the data."""


class UndecodableImage(Exception):
    """Bytes that are not an image that can be used. Its text is short and the same for the same bytes."""
