"""Calibrated codecs: features as integers, with one step for all coefficients of a row.

A row x of P tokens and D dimensions (`cls`: P = 1) becomes K = P * D coefficients:

    z = (x - mean) / scale          standardized; the mean is that of each token's place
    Y = spatial @ z @ basis.T       `klt`: the principal axes of dimensions, and of tokens; `scalar`: Y = z
    q = sign(Y) * floor(|Y| / step + rounding)

and comes back as x = mean + scale * (spatial.T @ (q * gain) @ basis). Both matrices are orthogonal, so the error in Y is
the error in z, and one step for all coefficients spends bits where there is variance (reverse water-filling; Cover and
Thomas, section 10.3): coefficients below the step become zeros that cost next to nothing. `gain` is the step times the
least-squares slope of Y on q, because values inside an interval lie nearer to zero than its middle.

Coefficients are stored in the order of falling variance, so that those beside each other have similar statistics, which
is what the entropy coder wants, and a unit's last ones are all zero, so that they need not be moved or multiplied.

Legend: N rows, B rows of a full block, P tokens, D dimensions, K = P * D coefficients, U <= K of them that some row of a
unit uses, E escaped values.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.cache.spec import INNER_ROWS, ArraySpec, Bools, Floats
from unic_pipe.pipeline.cache.synthesis import Synthesis
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError

MISSING = -32768
"""Fill value: the row has no data. Never a coefficient."""
LARGEST = 32767
"""Stored for any magnitude from here on; the escape table has the true one."""
MAX_ESCAPED = 1e-3
"""Fraction of a unit's values that the escape table may hold."""

_PIECE_ROWS = 64
_PAGE_VALUES = 8192
"""Values that share one histogram of the entropy coder; measured best from 2,048 to 65,536 on tokens of a ViT."""
_ESCAPE = struct.Struct("<8sq")
_ESCAPE_MAGIC = b"UNICESC1"

PCODEC: dict[str, Any] = {
    "name": "numcodecs.pcodec",
    "configuration": {
        "level": 8,
        "mode_spec": "classic",
        "delta_spec": "none",
        "paging_spec": "equal_pages_up_to",
        "equal_pages_up_to": _PAGE_VALUES,
    },
}


@dataclass(frozen=True, eq=False)
class Transform:
    """Everything that turns rows into integers and back."""

    row_shape: tuple[int, ...]
    step: float
    rounding: float
    mean_PD: Floats
    scale_D: Floats
    gain_D: Floats
    order_K: NDArray[np.int32]
    """Place p * D + d of each stored coefficient."""
    basis_DD: Floats | None
    """Rows are components; None: no transform."""
    spatial_PP: Floats | None
    """Rows are components; None: no transform, or a single token."""

    @property
    def shared_bytes(self) -> int:
        """Of the arrays, which every row needs."""
        arrays = (self.mean_PD, self.scale_D, self.gain_D, self.order_K, self.basis_DD, self.spatial_PP)
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def codec(self) -> str:
        """`klt` or `scalar`."""
        return "scalar" if self.basis_DD is None else "klt"

    @cached_property
    def synthesis(self) -> Synthesis:
        """The way back to features, on the CPU."""
        return self.synthesis_to(np.zeros(1), np.ones(1))

    def synthesis_to(
        self, mean_D: NDArray[np.float64], std_D: NDArray[np.float64], rotation_DD: NDArray[np.float64] | None = None
    ) -> Synthesis:
        """The way back to (features - mean) / std, rotated by `rotation_DD` if it is given, on the CPU."""
        return Synthesis.of(
            mean_PD=(self.mean_PD - mean_D) / std_D,
            scale_D=self.scale_D / std_D,
            gain_D=self.gain_D,
            order_K=self.order_K,
            basis_DD=self.basis_DD,
            spatial_PP=self.spatial_PP,
            rotation_DD=rotation_DD,
        )

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.array(array))

        basis = None if self.basis_DD is None else tensor(self.basis_DD.T)
        spatial = None if self.spatial_PP is None else tensor(self.spatial_PP)
        return tensor(self.mean_PD), tensor(self.scale_D), basis, spatial, tensor(self.order_K.astype(np.int64))

    def forward(self, values: Floats) -> Tensor:
        """Coefficients (N, K) float32, in the stored order, of rows (N, D) or (N, P, D)."""
        mean_PD, scale_D, basis_DD, spatial_PP, order_K = self._tensors
        # A copy in memory of torch's own: alignment must not decide over bits.
        y_NPD = torch.empty((len(values), *mean_PD.shape))
        y_NPD.copy_(torch.from_numpy(values).view(y_NPD.shape))
        y_NPD.sub_(mean_PD).div_(scale_D)
        if basis_DD is not None:
            y_NPD = (y_NPD.view(-1, y_NPD.shape[-1]) @ basis_DD).view(y_NPD.shape)
        if spatial_PP is not None:
            y_NPD = spatial_PP @ y_NPD
        return y_NPD.flatten(1)[:, order_K]

    def quantise(self, values: Floats) -> Tensor:
        """Integers (N, K), as float32, of rows (N, D) or (N, P, D). Raises StageError: values beyond all reason."""
        y_NK = self.forward(values)
        q_NK = y_NK.abs().div_(self.step).add_(self.rounding).floor_()
        if not bool((q_NK < 2.0**31).all()):
            raise StageError(
                f"A feature of {np.abs(values).max():.6g} is too large for the calibrated codec.",
                "Such an encoder is broken, or its weights are: check it with unic-pipe teachers.",
            )
        return q_NK.copysign_(y_NK)


class Escaped(NamedTuple):
    """Integers that do not fit 16 bits: row and coefficient of each, and what it is."""

    row_E: NDArray[np.int32]
    coefficient_E: NDArray[np.int32]
    value_E: NDArray[np.int32]

    def to_bytes(self) -> bytes:
        """Magic, count, rows, coefficients, values; little-endian. Nothing if there are none."""
        if not len(self.row_E):
            return b""
        columns = (np.ascontiguousarray(column, "<i4").tobytes() for column in self)
        return _ESCAPE.pack(_ESCAPE_MAGIC, len(self.row_E)) + b"".join(columns)

    @staticmethod
    def from_bytes(raw: bytes) -> Escaped:
        """The inverse of `to_bytes`, of verified bytes."""
        if not raw:
            return Escaped(*(np.zeros(0, np.int32),) * 3)
        magic, count = _ESCAPE.unpack_from(raw)
        if magic != _ESCAPE_MAGIC or len(raw) != _ESCAPE.size + 12 * count:
            raise ValueError("not an escape table")
        return Escaped(*np.frombuffer(raw, "<i4", offset=_ESCAPE.size).astype(np.int32).reshape(3, count))


class Coefficients(NamedTuple):
    """A unit's integers, row by row, and the transform that turns them into features."""

    stored: NDArray[np.int16]
    """(N, U): the first U coefficients in the stored order; the others are zero. Zeros where a row is not `present`."""
    transform: Transform
    present: Bools
    """(N,): rows that hold data."""
    escaped: Escaped

    def values(self) -> Floats:
        """Float32 (N, D) or (N, P, D); rows without data are NaN."""
        values = np.empty((len(self.stored), *self.transform.row_shape), np.float32)
        for start in range(0, len(values), _PIECE_ROWS):
            rows = slice(start, start + _PIECE_ROWS)
            q_NU = torch.from_numpy(self.stored[rows]).float()
            here = (self.escaped.row_E >= start) & (self.escaped.row_E < start + _PIECE_ROWS)
            if here.any():
                place = (self.escaped.row_E[here] - start, self.escaped.coefficient_E[here])
                q_NU[place] = torch.from_numpy(self.escaped.value_E[here]).float()
            values[rows] = self.transform.synthesis(q_NU).view(-1, *self.transform.row_shape).numpy()
        values[~self.present] = np.nan
        return values


class Calibrated:
    """`klt` or `scalar` bound to a token type: one array (K, rows) of 16-bit integers, and an escape table."""

    def __init__(self, token: TokenType, transform: Transform, block_rows: int, calibration: str | None) -> None:
        self.token, self.transform, self.calibration = token, transform, calibration
        self.row_shape = transform.row_shape
        self.scale_D: Floats | None = transform.scale_D
        size = prod(self.row_shape)
        # A chunk of few values would be mostly histograms, so only rows with patches are cut up.
        cut = block_rows % INNER_ROWS == 0 and token == "patch"
        self.arrays: tuple[ArraySpec, ...] = (
            ArraySpec(
                name=token,
                shard=(size, block_rows),
                inner=(size, INNER_ROWS if cut else block_rows),
                axis=1,
                counts="rows",
                dtype="int16",
                fill_value=MISSING,
                codecs=(PCODEC, {"name": "crc32c"}),
                dimensions=("coefficient", "row"),
            ),
        )

    @property
    def name(self) -> str:
        """`klt` or `scalar`."""
        return self.transform.codec

    def encode(self, values: Floats, valid_N: Bools) -> tuple[NDArray[Any], ...]:
        """One part (K, B) int16. Raises StageError: values beyond all reason."""
        part = np.full(self.arrays[0].shard, MISSING, np.int16)
        for start in range(0, len(values), _PIECE_ROWS):
            piece = values[start : start + _PIECE_ROWS]
            known = valid_N[start : start + len(piece)].reshape(-1, *(1,) * (piece.ndim - 1))
            q_NK = self.transform.quantise(np.where(known, piece, 0))
            part[:, start : start + len(piece)] = q_NK.clamp_(-LARGEST, LARGEST).to(torch.int16).T.numpy()
        part[:, : len(values)][:, ~valid_N] = MISSING
        return (part,)

    def escape(self, parts: tuple[NDArray[Any], ...], values: Floats) -> bytes:
        """Row, coefficient and value of everything beyond 16 bits.
        Raises StageError: more than a thousandth of the values."""
        part = parts[0]
        coefficient_E, row_E = np.nonzero((part == LARGEST) | (part == -LARGEST))
        if not len(row_E):
            return b""
        if len(row_E) > MAX_ESCAPED * values.size:
            raise StageError(
                f"{len(row_E):,} of {values.size:,} values are beyond 16 bits at this step: the calibration does not fit.",
                "Calibrate with wider steps: set cache.snr_db lower, or use cache.codec: float16.",
            )
        rows, which_E = np.unique(row_E, return_inverse=True)
        value_E = self.transform.quantise(np.ascontiguousarray(values[rows]))[which_E, coefficient_E]
        return Escaped(
            row_E.astype(np.int32), coefficient_E.astype(np.int32), value_E.numpy().astype(np.int32)
        ).to_bytes()

    def decode(self, parts: tuple[NDArray[Any], ...], count: int, escape: bytes = b"") -> Coefficients:
        """The integers row by row, as far as any is not zero."""
        part_KN = parts[0][:, :count]
        present = part_KN[0] != MISSING
        if not present.all():
            part_KN = np.where(present, part_KN, np.int16(0))
        used = np.flatnonzero(part_KN.any(axis=1))
        part_UN = part_KN[: used[-1] + 1 if len(used) else 1]
        # Torch transposes in tiles, several times as fast as NumPy.
        stored = torch.from_numpy(part_UN).T.contiguous().numpy()
        return Coefficients(stored, self.transform, present, Escaped.from_bytes(escape))
