"""Codecs: how float32 values become the contents of a unit's Zarr arrays, and come back.

A codec bound to a token type describes the arrays (`ArraySpec`) and maps a block's values to one part per array; a part
is exactly one shard. Nothing here touches Zarr. The registry is `schemas.codecs`.

Legend: N rows of the unit, B rows of a full block, P tokens per row, D dimensions, K parts of a unit (one per array).
`cls` values are (N, D), `patch` values are (N, P, D); `*` stands for either.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.spec import BYTES, CRC, LITTLE, ZSTD, ArraySpec, Bools, Decoded, Floats, Plain, rows_array
from unic_pipe.schemas.codecs import CODECS
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import FeatureDefinition

if TYPE_CHECKING:
    from unic_pipe.pipeline.cache.coefficients import Coefficients

_PIECE_VALUES = 1 << 20
"""Values that are worked on at a time, so that temporaries stay in the processor's cache."""


class TokenCodec(Protocol):
    """A codec bound to the token type and the sizes of one feature folder."""

    @property
    def name(self) -> str:
        """How it is called."""

    arrays: tuple[ArraySpec, ...]
    row_shape: tuple[int, ...]
    """(D,) or (P, D)."""
    scale_D: Floats | None
    """Standard deviations by which a calibration standardizes."""
    calibration: str | None
    """Digest of the calibration by which it works, if it needs one."""

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """K full parts, in the order of `arrays`, of values (N, *, D), N <= B; invalid rows become the sentinel.
        Raises StageError: values that this codec cannot hold."""

    def escape(self, parts: tuple[NDArray[Any], ...], values: Floats) -> bytes:
        """The table of what the parts of these values cannot hold; empty if they hold everything.
        Raises StageError: it would hold too much."""

    def decode(self, parts: tuple[NDArray[Any], ...], count: int, escape: bytes = b"") -> Decoded | Coefficients:
        """The first `count` rows of K parts and their escape table."""


class Float16(Plain):
    """Half precision, as numbers: (rows, *, D), NaN where a row has no data."""

    name = "float16"

    def __init__(self, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> None:
        self.row_shape = row_shape
        self._dim = row_shape[-1]
        self.arrays: tuple[ArraySpec, ...] = (
            rows_array(token, row_shape, block_rows, "float16", "NaN", (LITTLE, ZSTD, CRC)),
        )

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """One part (B, *, D) float16. Raises StageError: a finite value beyond float16's largest, 65504."""
        part = np.full(self.arrays[0].shard, np.nan, np.float16)
        stored = part[: len(values)]
        with np.errstate(over="ignore", invalid="ignore"):
            stored[...] = values
        stored[~valid_N] = np.nan
        # Infinite and NaN have an exponent of ones; as integers they are the largest.
        bits_N = (stored.reshape(len(values), -1).view(np.uint16) & 0x7FFF).max(axis=1, initial=0)
        if (bits_N[valid_N] >= 0x7C00).any():
            worst = float(np.abs(values[valid_N]).max())
            raise StageError(
                f"A feature of {worst:.6g} does not fit the float16 codec (largest 65504).",
                "Set cache.codec: int8 in unic-pipe.yaml; it scales each dimension to its range.",
            )
        return (part,)

    def decode(self, parts: tuple[NDArray[Any], ...], count: int, escape: bytes = b"") -> Decoded:
        """Stored float16 with scale 1 and offset 0."""
        del escape
        stored = parts[0][:count]
        present = ~np.isnan(stored.reshape(count, -1)[:, 0])
        return Decoded(stored, np.ones(self._dim, np.float32), np.zeros(self._dim, np.float32), present)


class Int8(Plain):
    """Eight bits, affine per dimension and block: value = q · scale + offset, q in [-127, 127], −128 without data.

    offset is the middle of the dimension's range over the block's valid rows and scale covers the wider half with 127
    steps, so a value is off by at most scale / 2 (and float32 rounding). A constant dimension has scale 0: exact.
    """

    name = "int8"

    def __init__(self, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> None:
        self.row_shape = row_shape
        self._dim = row_shape[-1]
        self.arrays: tuple[ArraySpec, ...] = (
            rows_array(token, row_shape, block_rows, "int8", -128, (BYTES, ZSTD, CRC)),
            ArraySpec(
                name=f"{token}_affine",
                shard=(1, 2, self._dim),
                inner=(1, 2, self._dim),
                axis=0,
                counts="blocks",
                dtype="float32",
                fill_value="NaN",
                codecs=(LITTLE, ZSTD, CRC),
                dimensions=("block", "scale_offset", "dimension"),
            ),
        )

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """Two parts: (B, *, D) int8 and (1, 2, D) float32.
        Raises StageError: values so large that decoding them would overflow float32."""
        part = np.full(self.arrays[0].shard, -128, np.int8)
        scale_D, offset_D = self._affine(values, valid_N)
        divisor_D = np.where(scale_D > 0, scale_D, np.float32(1))
        step = max(1, _PIECE_VALUES // max(1, prod(values.shape[1:])))
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            q = values[rows][valid_N[rows]] - offset_D
            np.divide(q, divisor_D, out=q)
            np.rint(q, out=q)
            np.clip(q, -127, 127, out=q)
            part[start : start + len(values[rows])][valid_N[rows]] = q.astype(np.int8)
        return part, np.stack([scale_D, offset_D])[None]

    def decode(self, parts: tuple[NDArray[Any], ...], count: int, escape: bytes = b"") -> Decoded:
        """Stored int8 and the block's affine."""
        del escape
        stored, affine = parts[0][:count], parts[1][0]
        return Decoded(stored, affine[0], affine[1], stored.reshape(count, -1)[:, 0] != -128)

    def _affine(self, values: Floats, valid_N: Bools) -> tuple[Floats, Floats]:
        if not valid_N.any():
            return np.zeros(self._dim, np.float32), np.zeros(self._dim, np.float32)
        rows = (values if valid_N.all() else values[valid_N]).reshape(-1, self._dim)
        low_D, high_D = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        offset_D = ((low_D + high_D) / 2).astype(np.float32)
        half_D = np.maximum(high_D - offset_D, offset_D - low_D)
        scale_D = (half_D / 127).astype(np.float32)
        # Rounded up: 127 steps must reach the range's end, also where the step is a subnormal number.
        scale_D = np.where(
            scale_D.astype(np.float64) * 127 < half_D, np.nextafter(scale_D, np.float32(np.inf)), scale_D
        )
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.abs(offset_D) + scale_D * np.float32(127)).all()
        if not finite:
            raise StageError(
                f"A feature of {max(-low_D.min(), high_D.max()):.6g} is too large for the int8 codec.",
                "Such an encoder is broken, or its weights are: check it with unic-pipe teachers.",
            )
        return scale_D.astype(np.float32), offset_D


def how_to_read(definition: FeatureDefinition) -> str:
    """The sentence that stands in the Zarr group of these features."""
    return CODECS["klt" if definition.codec.calibrated else definition.codec.name].reading


def plain_codec(name: str, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> TokenCodec:
    """A codec that needs no calibration, by its name."""
    module, _, made = CODECS[name].code.partition(":")
    codec: TokenCodec = getattr(import_module(module, __package__), made)(token, row_shape, block_rows)
    return codec
