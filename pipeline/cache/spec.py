"""What codecs are described with: the Zarr arrays of a unit, and the stored numbers that come back.

A unit is the features of one block for one view and token type; its part of an array is exactly one shard. Nothing here
touches Zarr.

Legend: N rows of the unit, P tokens per row, D dimensions. `cls` values are (N, D), `patch` values are (N, P, D); `*`
stands for either.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import FeatureDefinition

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

INNER_ROWS = 64
"""Rows of an inner chunk: what a reader of single rows has to decode. 64 cost 1 % more bytes than 256."""

# Measured on EfficientNet-Lite0 maps and on Gaussian noise: plain zstd level 1 needs fewer bits than Blosc with either
# shuffle (float16 maps: 3.9 against 4.7 and 6.1), and Blosc's bytes depend on how its threads finish.
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
CRC = {"name": "crc32c"}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BYTES = {"name": "bytes"}


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


class Plain:
    """What codecs without a calibration share."""

    calibration: str | None = None
    scale_D: Floats | None = None

    def escape(self, parts: tuple[NDArray[Any], ...], values: Floats) -> bytes:
        """Empty: the parts hold everything."""
        del parts, values
        return b""


def row_shape(definition: FeatureDefinition, token: TokenType) -> tuple[int, ...]:
    """Shape of one row's features: (D,) for `cls`, (P, D) for `patch`."""
    return definition.encoder.shape(token)


def rows_array(
    token: TokenType,
    row_shape: tuple[int, ...],
    block_rows: int,
    dtype: Literal["float16", "int8"],
    fill_value: int | str,
    codecs: tuple[dict[str, Any], ...],
) -> ArraySpec:
    """The array of a token type that holds one step for each row."""
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
