"""The registry of codecs: how features can be stored, one entry each. Free of NumPy and torch.

To add one that needs no calibration: a file in `pipeline/cache` with a class as `pipeline.cache.codecs.TokenCodec` has it,
and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unic_pipe.schemas.base import one_of

AUTO = "auto"
"""In place of a codec's name: whichever of all meets the wanted ratio in the fewest bits."""


@dataclass(frozen=True)
class Codec:
    """One way to store features."""

    code: str
    """`module:class` of its code; a leading dot stands for `pipeline.cache`. Imported when it is used."""
    reading: str
    """How any Zarr reader turns the arrays into features."""
    value_bytes: int
    """Of a value in memory as it is stored, before lossless compression."""
    compressed: float = 1.0
    """Bytes after lossless compression over bytes before, an upper estimate."""
    calibrated: bool = False
    """Whether it is fitted to sample rows, for a signal-to-noise ratio."""
    configurable: bool = True
    """Whether `cache.codec` may name it; others are candidates of `auto` only."""


_CALIBRATED = (
    "calibration/<token>.json names the codec of each token type, and the arrays beside it. scalar and klt: the "
    "integers q of a row, put to the places `order`, are a matrix Y (tokens, dimensions); features = "
    "mean + Y * gain * scale (scalar) or mean + (spatial.T @ (Y * gain)) @ basis * scale (klt); q = -32768 marks rows "
    "that cannot be used or are not extracted yet, and +-32767 what the escape table of the unit holds."
)
CODECS: dict[str, Codec] = {
    "float16": Codec(
        ".codecs:Float16",
        "Half-precision features; rows that cannot be used or are not extracted yet are NaN.",
        value_bytes=2,
        compressed=0.95,
    ),
    # It took 7.7 of 8 bits on a ViT's tokens.
    "int8": Codec(
        ".codecs:Int8",
        "feature = q * scale + offset per dimension, with scale = <name>_affine[row // block_rows, 0] and offset = "
        "<name>_affine[row // block_rows, 1]; q = -128 marks rows that cannot be used or are not extracted yet.",
        value_bytes=1,
    ),
    "scalar": Codec(".coefficients:Calibrated", _CALIBRATED, value_bytes=2, calibrated=True, configurable=False),
    "klt": Codec(".coefficients:Calibrated", _CALIBRATED, value_bytes=2, calibrated=True),
}
"""By the name that documents have."""

CodecName = Annotated[str, one_of(lambda: CODECS)]
"""Name of a codec."""
CodecChoice = Annotated[str, one_of(lambda: [*(name for name, codec in CODECS.items() if codec.configurable), AUTO])]
"""What `cache.codec` may say."""


def is_calibrated(choice: str) -> bool:
    """Whether a calibration says how units are stored."""
    return choice == AUTO or CODECS[choice].calibrated


def plain_codecs() -> list[str]:
    """The codecs that need no calibration."""
    return [name for name, codec in CODECS.items() if not codec.calibrated]
