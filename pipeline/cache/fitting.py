"""Fitting a calibrated codec to sample rows: axes, order, step and rounding that reach a signal-to-noise ratio.

The signal-to-noise ratio is that of features standardized per dimension, which is what a student sees:
10 log10(sum of squares / sum of squared errors). Three quarters of the rows give the axes, the others the step: on rows
that gave the axes it would look better than it is.

Legend: N rows, P tokens, D dimensions, K = P * D coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numcodecs.pcodec import PCodec
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.cache.arrays import encode_part
from unic_pipe.pipeline.cache.codecs import TokenCodec, plain_codec
from unic_pipe.pipeline.cache.coefficients import PCODEC, Calibrated, Transform
from unic_pipe.pipeline.cache.spec import Floats
from unic_pipe.pipeline.cache.statistics import STD_FLOOR, STD_FLOOR_OF_MEDIAN
from unic_pipe.schemas.codecs import plain_codecs
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import CodecTrial

ROUNDINGS = (0.5, 0.45, 0.4, 0.35, 0.3)
"""How magnitudes may be rounded; the fewest bits win."""
TOLERANCE_DB = 0.1
"""By how much a codec may miss the wanted ratio on the held-out rows."""

FINER_DB, FINER_TRIES = 6.0, 4
"""How far above the wanted ratio a step may aim that did not reach it, and how often."""

_SEARCH_VALUES = 1 << 21
_BISECTIONS = 16
_SPIKE = 0.05
"""Fraction of exact zeros from which on a dimension is taken to rest at zero (rectified units) and not at its mean."""
_PRIOR = 512.0
"""Weight of the common gain beside a component's own, in squared steps: own gains of few tokens would fit them too well."""


@dataclass(frozen=True)
class Sample:
    """Sample rows and their standardization."""

    values_NPD: Floats
    mean_D: Floats
    scale_D: Floats
    held_N: NDArray[np.bool_]
    """Rows that give step and rounding, and with which codecs are measured."""

    @staticmethod
    def of(values: Floats) -> Sample:
        """Of rows (N, D) or (N, P, D)."""
        values_NPD = values.reshape(len(values), -1, values.shape[-1])
        tokens_MD = values_NPD.reshape(-1, values.shape[-1])
        std_D = tokens_MD.std(axis=0, dtype=np.float64)
        # The floor of standardization, but above that of the sample's constant dimensions: they may be most of all, and
        # those that wake up later must not be millions of steps away.
        median = float(np.median(std_D[std_D > 0])) if (std_D > 0).any() else 0.0
        scale_D = np.maximum(std_D, max(STD_FLOOR, STD_FLOOR_OF_MEDIAN * median))
        held_N = np.arange(len(values)) % 4 == 3 if len(values) >= 8 else np.ones(len(values), bool)
        mean_D = tokens_MD.mean(axis=0, dtype=np.float64).astype(np.float32)
        return Sample(values_NPD, mean_D, scale_D.astype(np.float32), held_N)

    @property
    def fitted_N(self) -> NDArray[np.bool_]:
        """Rows that give the axes."""
        return self.held_N if self.held_N.all() else ~self.held_N

    def held(self, most: int) -> Floats:
        """Held-out rows (N, P, D), at most so many."""
        return self.values_NPD[np.flatnonzero(self.held_N)[:most]]

    @cached_property
    def power(self) -> float:
        """Mean square of the standardized values: 1, but for constant dimensions."""
        z_NPD = (self.values_NPD - self.mean_D) / self.scale_D
        return float(np.square(z_NPD, out=z_NPD).mean(dtype=np.float64))

    def principal_variances(self) -> NDArray[np.float64]:
        """Variances of the held-out rows along the principal axes of the others, (D,), in falling order: on its own
        axes a sample would look too uneven."""
        z_NPD = (self.values_NPD - self.mean_D) / self.scale_D
        fitted_MD, held_MD = (
            torch.from_numpy(z_NPD[n].reshape(-1, z_NPD.shape[-1])) for n in (self.fitted_N, self.held_N)
        )
        axes_DD, _ = _principal(fitted_MD.T @ fitted_MD)
        variance_D = (held_MD @ axes_DD.T).square_().mean(dim=0, dtype=torch.float64).numpy()
        return np.sort(variance_D)[::-1]

    def snr_db(self, values_NPD: Floats, back_NPD: Floats) -> float:
        """Of values that came back; the signal is that of all rows, which is known better."""
        z_NPD = (values_NPD - back_NPD) / self.scale_D
        error = float(np.square(z_NPD, out=z_NPD).mean(dtype=np.float64))
        # Constant features come back exactly; the figure must stay finite.
        return min(200.0, 10 * math.log10(max(self.power, 1e-300) / max(error, 1e-300)))


def axes_of(sample: Sample, row_shape: tuple[int, ...], transform: bool) -> Transform:
    """Where coefficients lie, with a step of one: principal axes, or the dimensions themselves."""
    return _axes(sample, row_shape) if transform else _places(sample, row_shape)


def fit(sample: Sample, row_shape: tuple[int, ...], snr_db: float, transform: bool) -> Transform:
    """The transform, step and rounding that reach `snr_db` on the held-out rows in the fewest bits."""
    return fit_step(axes_of(sample, row_shape, transform), sample, snr_db)


def fit_step(places: Transform, sample: Sample, snr_db: float) -> Transform:
    """Step and rounding for given axes."""
    row_shape = places.row_shape
    held_NPD = sample.held(max(8, _SEARCH_VALUES // max(1, int(np.prod(row_shape)))))
    noise = sample.power * held_NPD.size * 10 ** (-snr_db / 10)
    y_KN = places.forward(np.ascontiguousarray(held_NPD)).T.contiguous()
    if not noise > 0:
        return replace(places, step=1.0, rounding=0.5, gain_D=np.ones(row_shape[-1], np.float32))
    component_K = torch.from_numpy(places.order_K.astype(np.int64) % row_shape[-1])
    best: tuple[int, float, float, Tensor] | None = None
    for rounding in ROUNDINGS:
        step = _step(y_KN, component_K, rounding, noise)
        q_KN = _quantised(y_KN, step, rounding)
        size = _coded_bytes(q_KN)
        if best is None or size < best[0]:
            best = size, step, rounding, q_KN
    assert best is not None
    _, step, rounding, q_KN = best
    gain_D = _slopes(y_KN, q_KN, step, component_K).mul_(step).numpy()
    return replace(places, step=step, rounding=rounding, gain_D=gain_D)


def measure(codec: TokenCodec, sample: Sample) -> tuple[float, float, Floats, Floats]:
    """Bits per value and SNR in dB on held-out rows that fill at most one block; those rows, and what came back."""
    rows_NPD = sample.held(codec.arrays[0].shard[codec.arrays[0].axis])
    rows = np.ascontiguousarray(rows_NPD.reshape(len(rows_NPD), *codec.row_shape))
    parts = codec.encode(rows, np.ones(len(rows), bool))
    size = sum(len(encode_part(spec, part)) for spec, part in zip(codec.arrays, parts, strict=True))
    back = codec.decode(parts, len(rows), codec.escape(parts, rows)).values().reshape(rows_NPD.shape)
    return 8 * size / rows.size, sample.snr_db(rows_NPD, back), rows_NPD, back


def candidate(
    name: str, token: TokenType, sample: Sample, row_shape: tuple[int, ...], block_rows: int, snr_db: float
) -> TokenCodec:
    """A codec by name, fitted if it needs it, for blocks that the held-out rows can fill."""
    rows = min(block_rows, int(sample.held_N.sum()))
    if name in plain_codecs():
        return plain_codec(name, token, row_shape, rows)
    return Calibrated(token, fit(sample, row_shape, snr_db, name == "klt"), rows, None)


def finer(codec: Calibrated, sample: Sample, snr_db: float) -> Calibrated:
    """The same axes with a step that reaches the ratio on the rows of `measure`, or gets nearer to it.

    The step comes from fewer or other rows than those, and misses by little where they are harder to store."""
    found, aim = codec, snr_db
    for _ in range(FINER_TRIES):
        missing = snr_db - measure(found, sample)[1]
        if missing <= 0 or aim >= snr_db + FINER_DB:
            break
        aim = min(aim + missing + TOLERANCE_DB / 2, snr_db + FINER_DB)
        spec = codec.arrays[0]
        places = fit_step(codec.transform, sample, aim)
        found = Calibrated(codec.token, places, spec.shard[spec.axis], None)
    return found


def with_all_rows(transform: Transform, sample: Sample) -> Transform:
    """The same step and rounding on the axes of all rows, also of those that gave the step.

    Axes of more rows fit other rows better, so that these take fewer bits at the same ratio (within .1 dB)."""
    if transform.codec == "scalar":
        return transform
    places = axes_of(replace(sample, held_N=np.ones_like(sample.held_N)), transform.row_shape, True)
    return replace(places, step=transform.step, rounding=transform.rounding, gain_D=transform.gain_D)


def choose(trials: list[CodecTrial], snr_db: float) -> CodecTrial:
    """The fewest bits among those that reach the ratio, with what all rows share; if none does, the best ratio."""
    enough = [t for t in trials if reached(t.snr_db, snr_db)]
    if not enough:
        return max(trials, key=lambda t: t.snr_db)
    return min(enough, key=lambda t: t.bits_per_value + t.shared_bits)


def reached(ratio_db: float, snr_db: float) -> bool:
    """Whether a ratio is the wanted one, within `TOLERANCE_DB`."""
    return ratio_db >= snr_db - TOLERANCE_DB


def _axes(sample: Sample, row_shape: tuple[int, ...]) -> Transform:
    """Principal axes of the dimensions, then of the tokens over components of equal weight."""
    mean_PD = sample.values_NPD.mean(axis=0, dtype=np.float64).astype(np.float32)
    z_NPD = torch.from_numpy((sample.values_NPD[sample.fitted_N] - mean_PD) / sample.scale_D)
    z_MD = z_NPD.flatten(0, 1)
    basis_DD, variance_D = _principal(z_MD.T @ z_MD)
    spatial_PP = None
    if len(row_shape) == 2 and row_shape[0] > 1:
        y_NPD = z_NPD @ basis_DD.T
        # The weaker half is noise to the transform over tokens, and the strongest few would decide alone.
        some = slice(0, max(1, row_shape[1] // 2))
        y_NPD = y_NPD[..., some] / variance_D[some].div(len(z_MD)).clamp(min=1e-12).sqrt()
        y_PM = y_NPD.transpose(0, 1).flatten(1)
        spatial_PP = _principal(y_PM @ y_PM.T)[0].numpy()
    return _ordered(sample, row_shape, mean_PD, basis_DD.numpy(), spatial_PP)


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows by falling variance, each with its largest entry positive; and the variances. Float32."""
    variance, vectors = torch.linalg.eigh(covariance.double())
    rows = vectors.flip(1).T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return (rows * largest.sign()).float().contiguous(), variance.flip(0).clamp(min=0).float()


def _places(sample: Sample, row_shape: tuple[int, ...]) -> Transform:
    """No transform: dimensions that often are exactly zero are stored around zero, the others around their mean."""
    zeros_D = (sample.values_NPD == 0).mean(axis=(0, 1))
    rest_D = np.where(zeros_D >= _SPIKE, np.float32(0), sample.mean_D)
    mean_PD = np.ascontiguousarray(np.broadcast_to(rest_D, sample.values_NPD.shape[1:]))
    return _ordered(sample, row_shape, mean_PD, None, None)


def _ordered(
    sample: Sample, row_shape: tuple[int, ...], mean_PD: Floats, basis_DD: Floats | None, spatial_PP: Floats | None
) -> Transform:
    places = Transform(
        row_shape=row_shape,
        step=1.0,
        rounding=0.5,
        mean_PD=mean_PD,
        scale_D=sample.scale_D,
        gain_D=np.ones(row_shape[-1], np.float32),
        order_K=np.arange(mean_PD.size, dtype=np.int32),
        basis_DD=basis_DD,
        spatial_PP=spatial_PP,
    )
    power_K = np.zeros(mean_PD.size)
    for start in range(0, len(sample.values_NPD), 64):
        power_K += (
            places.forward(sample.values_NPD[start : start + 64]).square().sum(dim=0, dtype=torch.float64).numpy()
        )
    return replace(places, order_K=np.argsort(-power_K, kind="stable").astype(np.int32))


def _quantised(y_KN: Tensor, step: float, rounding: float) -> Tensor:
    return y_KN.abs().div_(step).add_(rounding).floor_().copysign_(y_KN)


def _slopes(y_KN: Tensor, q_KN: Tensor, step: float, component_K: Tensor) -> Tensor:
    """Least-squares slope of y on q * step for each dimension or component, drawn towards the common one: (D,)."""
    dims = int(component_K.max()) + 1
    product_D, square_D = torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dtype=torch.float64)
    product_D.index_add_(0, component_K, (y_KN * q_KN).sum(dim=1, dtype=torch.float64) * step)
    square_D.index_add_(0, component_K, (q_KN * q_KN).sum(dim=1, dtype=torch.float64) * step**2)
    common = float(product_D.sum() / square_D.sum()) if float(square_D.sum()) > 0 else 1.0
    prior = _PRIOR * step**2
    return ((product_D + prior * common) / (square_D + prior)).float()


def _step(y_KN: Tensor, component_K: Tensor, rounding: float, noise: float) -> float:
    """The widest step whose squared error is at most `noise`, to a thousandth."""
    root = math.sqrt(float(y_KN.square().mean(dtype=torch.float64)))
    low, high = root * 1e-4, root * 1e2
    for _ in range(_BISECTIONS):
        step = math.sqrt(low * high)
        q_KN = _quantised(y_KN, step, rounding)
        slopes_K = _slopes(y_KN, q_KN, step, component_K)[component_K]
        error = (q_KN.mul_(slopes_K[:, None] * step)).sub_(y_KN).square_().sum(dtype=torch.float64)
        low, high = (step, high) if float(error) <= noise else (low, step)
    return low


def _coded_bytes(q_KN: Tensor) -> int:
    return len(PCodec(**PCODEC["configuration"]).encode(q_KN.clamp(-32767, 32767).to(torch.int16).numpy()))
