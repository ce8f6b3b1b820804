"""Distillation targets from the caches: a window of decoded blocks, and one multiply-add on the training device.

The target is (feature - mean) / std; the codec turns integers into features by value * scale + offset (int8), so both
fold into value * (scale / std) + (offset - mean) / std. Students that train together share the stored values, and each
has its own multiply-add (calibrated codecs: a matrix product, see `stages.distill.data.coefficients`). A teacher whose grid
of patch tokens differs from the student's is resampled to it afterwards: bilinear between token centres, and antialiased
(a triangle as wide as the reduction) where the grid shrinks.

Shapes: B rows of a batch, P patch tokens of the teacher, Q of the student, D teacher dimension, K blocks of a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unic_pipe.pipeline.cache.coefficients import Coefficients
from unic_pipe.pipeline.cache.normalisers import normalisation
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.spec import Decoded
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.losses import EXACT, Normaliser, TokenType
from unic_pipe.stages.distill.clock import Times
from unic_pipe.stages.distill.data.coefficients import CoefficientTargets, Unfolding, gather_coefficients

Pair = tuple[str, TokenType]
"""(teacher, token type)."""

BlockKey = tuple[str, TokenType, int, int]
"""(teacher, token type, view, block)."""


class BlockWindow:
    """Decoded blocks, least recently used first; reads run in a pool. Used by one thread at a time."""

    def __init__(
        self, caches: Mapping[str, FeatureCache], pool: Executor, capacity: int, times: Times | None = None
    ) -> None:
        """`capacity`: the number of (teacher, token type, view, block) that are kept. `times`: where reads count."""
        self.caches, self.pool, self.capacity, self.times = caches, pool, capacity, times or Times()
        self._blocks: OrderedDict[BlockKey, Future[Decoded | Coefficients]] = OrderedDict()

    def request(self, keys: Sequence[BlockKey]) -> None:
        """Start reading what is not there, and drop what was not asked for longest."""
        for key in keys:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            else:
                self._blocks[key] = self.pool.submit(self._read, key)
        while len(self._blocks) > max(self.capacity, len(keys)):
            self._blocks.popitem(last=False)

    def get(self, keys: Sequence[BlockKey]) -> list[Decoded | Coefficients]:
        """The blocks. Raises StageError where one is missing or damaged."""
        self.request(keys)
        return [self._blocks[key].result() for key in keys]

    def _read(self, key: BlockKey) -> Decoded | Coefficients:
        teacher, token, view, block = key
        with self.times.spent("decompressing"):
            decoded, reading_s = self.caches[teacher].read_block_timed(view, token, block)
        self.times.add("reading", reading_s)
        self.times.add("decompressing", -reading_s)
        return decoded


@dataclass
class Rotation:
    """A rotation of targets, on every device that asked for it."""

    matrix_DD: NDArray[np.float64]
    """A target is a token times its transpose."""
    _moved: dict[torch.device, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotated tokens (..., D), float32."""
        if x.device not in self._moved:
            self._moved[x.device] = torch.from_numpy(self.matrix_DD.T.astype(np.float32)).to(x.device)
        return x @ self._moved[x.device]


@dataclass(frozen=True)
class Standard:
    """A standardization, and the name by which students that share it find it."""

    name: str
    mean_D: NDArray[np.float64]
    std_D: NDArray[np.float64]
    rotation: Rotation | None = None
    """By which it is multiplied after that (PHI-S)."""

    def of(self, x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens (N, D) as targets."""
        scaled_ND = (x_ND - self.mean_D) / self.std_D
        return scaled_ND if self.rotation is None else scaled_ND @ self.rotation.matrix_DD.T

    def classifier(self, weights_CD: NDArray[np.float64]) -> NDArray[np.float64]:
        """A classifier of tokens, its biases in a last column, as one of targets: it gives the same logits."""
        scaled_CD, bias_C = (
            weights_CD[:, :-1] * self.std_D,
            weights_CD[:, -1] + (weights_CD[:, :-1] * self.mean_D).sum(1),
        )
        return np.column_stack([scaled_CD if self.rotation is None else scaled_CD @ self.rotation.matrix_DD.T, bias_C])


PLAIN = Standard("", np.zeros(1), np.ones(1))
"""The features themselves."""


def standard_of(
    statistics: StatisticsDocument | None,
    token: TokenType,
    how: Normaliser = "exact",
    rotation_DD: NDArray[np.float64] | None = None,
) -> Standard:
    """The standardization of one teacher's tokens by exact statistics; without any, or of another kind, none.

    `rotation_DD`: of PHI-S.
    """
    if statistics is None or how not in EXACT:
        return PLAIN
    found = statistics.cls if token == "cls" else statistics.patch
    assert found is not None, "statistics cover every token type that is trained on"
    digest = digest_of(statistics)
    rotation = None if rotation_DD is None else Rotation(rotation_DD)
    return Standard(digest if how == "exact" else f"{digest} {how}", *normalisation(found, how), rotation)


class Affine(NamedTuple):
    """What turns the stored values of K blocks into targets: value * scale + shift, each (K, D) float32."""

    scale_KD: Tensor
    shift_KD: Tensor


@dataclass(frozen=True)
class RawTargets:
    """Stored values of a batch and the affines that turn them into targets; small enough to send to a device."""

    values: Tensor
    """(B, D) or (B, P, D), int8, float16 or float32."""
    block_B: Tensor
    """Which of the K rows of scale and shift belongs to each image (int64)."""
    affines: Mapping[str, Affine]
    """By name of the standardization."""
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    """Of those that have one."""

    def decode(self, standard: str = PLAIN.name) -> Tensor:
        """Targets by the standardization of that name, float32 (B, D) or (B, P, D)."""
        target, rotation = self._scaled(standard), self.rotations.get(standard)
        return target if rotation is None else rotation(target)

    def _scaled(self, standard: str) -> Tensor:
        scale_KD, shift_KD = self.affines[standard]
        if len(scale_KD) == 1:
            return torch.addcmul(shift_KD[0], self.values.float(), scale_KD[0])
        scale_BD, shift_BD = scale_KD[self.block_B], shift_KD[self.block_B]
        if self.values.ndim == 3:
            scale_BD, shift_BD = scale_BD[:, None], shift_BD[:, None]
        return torch.addcmul(shift_BD, self.values.float(), scale_BD)

    def each(self, change: Callable[[Tensor], Tensor]) -> RawTargets:
        """The same with every tensor changed: moved, or pinned."""
        affines = {name: Affine(*map(change, affine)) for name, affine in self.affines.items()}
        return RawTargets(change(self.values), change(self.block_B), affines, self.rotations)


@dataclass(frozen=True)
class MixedTargets:
    """Targets of a batch of several datasets, each with its own codec, calibration and blocks.

    A teacher that teaches on some of them has targets for M of the batch's rows.
    """

    parts: tuple[tuple[Tensor, RawTargets | CoefficientTargets], ...]
    """Places in the batch (int64), and the targets of the rows there."""
    whole: bool = True
    """Whether every row has a target."""

    def each(self, change: Callable[[Tensor], Tensor]) -> MixedTargets:
        """The same with every tensor changed: moved, or pinned."""
        return MixedTargets(tuple((change(place), raw.each(change)) for place, raw in self.parts), self.whole)

    def decode(self, standard: str = PLAIN.name) -> Tensor:
        """Targets by the standardization of that name, float32 (M, D) or (M, P, D), in the order of the batch."""
        decoded = [raw.decode(standard) for _, raw in self.parts]
        order_M = torch.cat([place for place, _ in self.parts]).argsort()
        return torch.cat(decoded)[order_M]

    @property
    def rows_M(self) -> Tensor:
        """Rows of the batch that have a target, ascending (int64)."""
        return torch.cat([place for place, _ in self.parts]).sort().values


def rows_with(targets: AnyTargets) -> Tensor | None:
    """Rows of a batch that have a target, ascending (int64); None: all of them."""
    return targets.rows_M if isinstance(targets, MixedTargets) and not targets.whole else None


AnyTargets = RawTargets | CoefficientTargets | MixedTargets
Targets = Mapping[Pair, AnyTargets]
Wanted = Mapping[Pair, Mapping[str, Standard]]
"""For every teacher and token type, the standardizations that some student wants, by name."""


def read_pairs(wanted: Wanted, patches: bool) -> Wanted:
    """What is read of a view; without `patches`, its cls tokens alone."""
    return wanted if patches else {pair: standards for pair, standards in wanted.items() if pair[1] == "cls"}


class TargetReader:
    """Gathers the stored values of arbitrary rows for every teacher and token type."""

    def __init__(self, window: BlockWindow, wanted: Wanted, block_rows: int) -> None:
        self.window, self.wanted, self.block_rows = window, wanted, block_rows
        self._unfoldings: dict[Pair, dict[str, Unfolding]] = {}

    def keys(self, rows_B: NDArray[np.int64], view: int, patches: bool = True) -> list[BlockKey]:
        """The blocks that the rows need; without `patches`, of cls tokens alone."""
        blocks = np.unique(rows_B // self.block_rows).tolist()
        return [
            (teacher, token, view, block) for teacher, token in read_pairs(self.wanted, patches) for block in blocks
        ]

    def request(self, rows_B: NDArray[np.int64], view: int, patches: bool = True) -> None:
        """Start reading what the rows need."""
        self.window.request(self.keys(rows_B, view, patches))

    def read(
        self, rows_B: NDArray[np.int64], view: int, patches: bool = True
    ) -> dict[Pair, RawTargets | CoefficientTargets]:
        """The rows' targets in stored form, by teacher and token type; all rows must be usable."""
        block_of_B = rows_B // self.block_rows
        _, which_B = np.unique(block_of_B, return_inverse=True)
        keys = self.keys(rows_B, view, patches)
        blocks = self.window.get(keys)
        wanted = read_pairs(self.wanted, patches)
        per_pair = len(keys) // len(wanted)
        offset_B = rows_B % self.block_rows
        with self.window.times.spent("gathering"):
            return {
                pair: self._gather(pair, blocks[i * per_pair : (i + 1) * per_pair], offset_B, which_B)
                for i, pair in enumerate(wanted)
            }

    def _gather(
        self,
        pair: Pair,
        blocks: Sequence[Decoded | Coefficients],
        offset_B: NDArray[np.int64],
        which_B: NDArray[np.int64],
    ) -> RawTargets | CoefficientTargets:
        standards = self.wanted[pair]
        coefficients = [block for block in blocks if isinstance(block, Coefficients)]
        if not coefficients:
            return _gather([b for b in blocks if isinstance(b, Decoded)], offset_B, which_B, standards)
        if pair not in self._unfoldings:
            # Every unit of a feature folder is of one calibration.
            transform = coefficients[0].transform
            self._unfoldings[pair] = {
                name: Unfolding(
                    transform.synthesis_to(s.mean_D, s.std_D, None if s.rotation is None else s.rotation.matrix_DD)
                )
                for name, s in standards.items()
            }
        return gather_coefficients(coefficients, offset_B, which_B, self._unfoldings[pair])


class GridResampler:
    """Turns (B, P, D) patch tokens on one grid into (B, Q, D) on another: a fixed linear map over tokens."""

    def __init__(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        device: torch.device,
        antialias: bool = True,
        mode: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        """Grids as (rows, columns) of tokens; both cover the whole image. `antialias`: where the grid shrinks."""
        self.weights_QP: Tensor | None = None
        if source != target:
            basis_P1HW = torch.eye(source[0] * source[1]).view(-1, 1, *source)
            resampled = F.interpolate(basis_P1HW, size=target, mode=mode, antialias=antialias, align_corners=False)
            self.weights_QP = resampled.flatten(1).T.contiguous().to(device)

    def __call__(self, x_BPD: Tensor) -> Tensor:
        """Resampled tokens, float32."""
        return x_BPD if self.weights_QP is None else self.weights_QP @ x_BPD.float()


class CommonGrid:
    """The grid on which a teacher's patch tokens are compared with their predictions (`loss.grid`)."""

    def __init__(
        self,
        teacher: tuple[int, int],
        student: tuple[int, int],
        grid: Literal["student", "larger"],
        device: torch.device,
    ) -> None:
        larger = grid == "larger" and teacher[0] * teacher[1] > student[0] * student[1]
        common = teacher if larger else student
        mode: Literal["bilinear", "bicubic"] = "bicubic" if grid == "larger" else "bilinear"
        smooth = (
            grid == "student"
        )  # a larger grid is only reached by growing, and antialiasing has another cubic kernel
        self.target = GridResampler(teacher, common, device, smooth, mode)
        self.prediction = GridResampler(student, common, device, smooth, mode)


def _gather(
    blocks: Sequence[Decoded],
    offset_B: NDArray[np.int64],
    which_B: NDArray[np.int64],
    standards: Mapping[str, Standard],
) -> RawTargets:
    stored = blocks[0].stored
    values = np.empty((len(offset_B), *stored.shape[1:]), dtype=stored.dtype)
    for i, block in enumerate(blocks):
        mine = np.flatnonzero(which_B == i)
        values[mine] = block.stored[offset_B[mine]]
    # float16 features are stored as they are: every block has scale 1 and offset 0.
    affine = blocks[:1] if stored.dtype == np.float16 else blocks
    scale_KD = np.stack([block.scale_D for block in affine]).astype(np.float64)
    offset_KD = np.stack([block.offset_D for block in affine]).astype(np.float64)
    affines = {name: folded(scale_KD, offset_KD, standard) for name, standard in standards.items()}
    return RawTargets(torch.from_numpy(values), torch.from_numpy(which_B), affines, rotations(standards))


def rotations(standards: Mapping[str, Standard]) -> dict[str, Rotation]:
    """The rotations of those that have one, by name."""
    return {name: standard.rotation for name, standard in standards.items() if standard.rotation is not None}


def folded(scale_KD: NDArray[np.float64], offset_KD: NDArray[np.float64], standard: Standard) -> Affine:
    """Codec and standardization as one multiply-add."""
    return Affine(
        torch.from_numpy((scale_KD / standard.std_D).astype(np.float32)),
        torch.from_numpy(((offset_KD - standard.mean_D) / standard.std_D).astype(np.float32)),
    )
