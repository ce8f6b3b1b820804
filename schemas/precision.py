"""What it brings to compute a teacher in another floating-point type, and what it costs its features."""

from __future__ import annotations

from unic_pipe.schemas.base import Model
from unic_pipe.schemas.losses import TokenType
from unic_pipe.schemas.places import Dtype


class PrecisionTrial(Model):
    """One way to compute a teacher, measured in turns with the first, which is float32."""

    name: str
    """`float32`, `bfloat16`, `float16`, or another setting in float32, as `views: device`."""
    images_per_second: float
    """Forward passes alone, of the median turn."""
    speedup: float
    """How many times as fast as float32: the median turn."""
    speedup_low: float
    """The worst turn."""
    snr_db: dict[TokenType, float]
    """Of the features against float32's, standardized per dimension: 200 where they are equal, 0 where some are not
    finite. Of the token types that are cached."""


class TeacherPrecision(Model):
    """What was measured of a teacher, and the type that it is worth."""

    teacher: str
    device: str
    configured: Dtype
    chosen: Dtype
    """The configured one where nothing was measured, and where the codec keeps more than a rounded type gives."""
    trials: tuple[PrecisionTrial, ...] = ()
    remark: str = ""
    """Why nothing was measured."""
