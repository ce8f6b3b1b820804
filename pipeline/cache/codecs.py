"""Codecs: which Zarr arrays hold a unit, and how float32 values become their contents and come back.

A unit is the features of one block for one view and token type. A codec bound to a token type describes the arrays
(`ArraySpec`) and maps a block's values to one part per array; a part is exactly one shard. Nothing here touches Zarr.

Legend: N rows of the unit, B rows of a full block, P tokens per row, D dimensions, K parts of a unit (one per array).
`cls` values are (N, D), `patch` values are (N, P, D); `*` stands for either.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.config import TokenType
from schemas.errors import StageError
from schemas.features import CodecName, FeatureDefinition

if TYPE_CHECKING:
    from pipeline.cache.coefficients import Coefficients

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

INNER_ROWS = 64
"""Rows of an inner chunk: what a reader of single rows has to decode. 64 cost 1 % more bytes than 256."""

_PIECE_VALUES = 1 << 20
"""Values that are worked on at a time, so that temporaries stay in the processor's cache."""

# Measured on EfficientNet-Lite0 maps and on Gaussian noise: plain zstd level 1 needs fewer bits than Blosc with either
# shuffle (float16 maps: 3.9 against 4.7 and 6.1), and Blosc's bytes depend on how its threads finish.
_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES = {"name": "bytes"}


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of a (view, token type). It grows along `axis`; a unit owns one shard of it."""

    name: str
    """Name inside the view's group, such as `patch` or `patch_affine`."""
    shard: tuple[int, ...]
    """Shape of one unit's part. Along `axis`: rows of a block, or 1 if the array has one entry per block."""
    inner: tuple[int, ...]
    """Shape of the chunks inside a shard; equal to `shard` where there is no sharding."""
    axis: int
    counts: Literal["rows", "blocks"]
    """What one step along `axis` is."""
    dtype: Literal["float16", "float32", "int8", "int16", "int32"]
    fill_value: int | str
    """As in `zarr.json`: what a reader sees where nothing was written. No encoder's value is stored as it."""
    codecs: tuple[dict[str, Any], ...]
    """As in `zarr.json`, of the inner chunks."""
    dimensions: tuple[str, ...]
    """Names of the axes."""

    def shape(self, end_row: int, block_rows: int) -> tuple[int, ...]:
        """Shape of the whole array for a dataset whose rows end at `end_row`."""
        extent = end_row if self.counts == "rows" else -(-end_row // block_rows)
        return (*self.shard[: self.axis], extent, *self.shard[self.axis + 1 :])

    def chunk_key(self, block: int) -> str:
        """Key of a unit's shard below the array."""
        return "/".join(["c", *("0" if i != self.axis else str(block) for i in range(len(self.shard)))])


class Decoded(NamedTuple):
    """Stored numbers of a unit; value = stored · scale + offset, so that standardization folds into one multiply-add."""

    stored: NDArray[Any]
    """(N, *, D) float16 or int8; rows that are not `present` hold the sentinel."""
    scale_D: Floats
    offset_D: Floats
    present: Bools
    """(N,): rows that hold data."""

    def values(self) -> Floats:
        """Float32 (N, *, D); rows without data are NaN."""
        values = self.stored.astype(np.float32)
        if self.stored.dtype != np.float16:
            values *= self.scale_D
            values += self.offset_D
            values[~self.present] = np.nan
        return values


class TokenCodec(Protocol):
    """A codec bound to the token type and the sizes of one feature folder."""

    @property
    def name(self) -> CodecName:
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

        Raises:
            StageError: values that this codec cannot hold.
        """

    def escape(self, parts: tuple[NDArray[Any], ...], values: Floats) -> bytes:
        """The table of what the parts of these values cannot hold; empty if they hold everything.

        Raises:
            StageError: it would hold too much.
        """

    def decode(self, parts: tuple[NDArray[Any], ...], count: int, escape: bytes = b"") -> Decoded | Coefficients:
        """The first `count` rows of K parts and their escape table."""


class _Plain:
    """What codecs without a calibration share."""

    calibration: str | None = None
    scale_D: Floats | None = None

    def escape(self, parts: tuple[NDArray[Any], ...], values: Floats) -> bytes:
        """Empty: the parts hold everything."""
        del parts, values
        return b""


class Float16(_Plain):
    """Half precision, as numbers: (rows, *, D), NaN where a row has no data."""

    name: CodecName = "float16"

    def __init__(self, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> None:
        self.row_shape = row_shape
        self._dim = row_shape[-1]
        self.arrays: tuple[ArraySpec, ...] = (
            _rows_array(token, row_shape, block_rows, "float16", "NaN", (_LITTLE, _ZSTD, _CRC)),
        )

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """One part (B, *, D) float16.

        Raises:
            StageError: a finite value beyond float16's largest, 65504.
        """
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


class Int8(_Plain):
    """Eight bits, affine per dimension and block: value = q · scale + offset, q in [-127, 127], −128 without data.

    offset is the middle of the dimension's range over the block's valid rows and scale covers the wider half with 127
    steps, so a value is off by at most scale / 2 (and float32 rounding). A constant dimension has scale 0: exact.
    """

    name: CodecName = "int8"

    def __init__(self, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> None:
        self.row_shape = row_shape
        self._dim = row_shape[-1]
        self.arrays: tuple[ArraySpec, ...] = (
            _rows_array(token, row_shape, block_rows, "int8", -128, (_BYTES, _ZSTD, _CRC)),
            ArraySpec(
                name=f"{token}_affine",
                shard=(1, 2, self._dim),
                inner=(1, 2, self._dim),
                axis=0,
                counts="blocks",
                dtype="float32",
                fill_value="NaN",
                codecs=(_LITTLE, _ZSTD, _CRC),
                dimensions=("block", "scale_offset", "dimension"),
            ),
        )

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """Two parts: (B, *, D) int8 and (1, 2, D) float32.

        Raises:
            StageError: values so large that decoding them would overflow float32.
        """
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


HOW_TO_READ = {
    "float16": "Half-precision features; rows that cannot be used or are not extracted yet are NaN.",
    "int8": (
        "feature = q * scale + offset per dimension, with scale = <name>_affine[row // block_rows, 0] and "
        "offset = <name>_affine[row // block_rows, 1]; q = -128 marks rows that cannot be used or are not extracted yet."
    ),
    "calibrated": (
        "calibration/<token>.json names the codec of each token type, and the arrays beside it. scalar and klt: the "
        "integers q of a row, put to the places `order`, are a matrix Y (tokens, dimensions); features = "
        "mean + Y * gain * scale (scalar) or mean + (spatial.T @ (Y * gain)) @ basis * scale (klt); q = -32768 marks rows "
        "that cannot be used or are not extracted yet, and +-32767 what the escape table of the unit holds."
    ),
}
"""How any Zarr reader turns the arrays into features, by codec."""


def how_to_read(definition: FeatureDefinition) -> str:
    """The sentence that stands in the Zarr group of these features."""
    return HOW_TO_READ["calibrated" if definition.codec.calibrated else definition.codec.name]


def row_shape(definition: FeatureDefinition, token: TokenType) -> tuple[int, ...]:
    """Shape of one row's features: (D,) for `cls`, (P, D) for `patch`."""
    return definition.encoder.shape(token)


def plain_codec(name: str, token: TokenType, row_shape: tuple[int, ...], block_rows: int) -> TokenCodec:
    """A codec that needs no calibration, by its name."""
    codecs: dict[str, type[Float16] | type[Int8]] = {"float16": Float16, "int8": Int8}
    return codecs[name](token, row_shape, block_rows)


def _rows_array(
    token: TokenType,
    row_shape: tuple[int, ...],
    block_rows: int,
    dtype: Literal["float16", "int8"],
    fill_value: int | str,
    codecs: tuple[dict[str, Any], ...],
) -> ArraySpec:
    # Inner chunks must divide the shard; a block of another size than a multiple of 64 is one chunk.
    inner = INNER_ROWS if block_rows % INNER_ROWS == 0 else block_rows
    return ArraySpec(
        name=token,
        shard=(block_rows, *row_shape),
        inner=(inner, *row_shape),
        axis=0,
        counts="rows",
        dtype=dtype,
        fill_value=fill_value,
        codecs=codecs,
        dimensions=("row", "dimension") if len(row_shape) == 1 else ("row", "token", "dimension"),
    )
