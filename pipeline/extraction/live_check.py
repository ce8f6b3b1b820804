"""The live check: run a teacher again on a few cached samples and compare with what the cache gives back.

Everything else compares bytes with records; this compares the features themselves, so it also finds a cache that was
made by other weights, pixels or kernels than it says. The error of a sample is relative: the square root of
sum (cached - live)² / sum var over its tokens and dimensions, with the cache's variances, so that channels which hardly
ever fire do not decide. What the codec alone may add is known: half a step of `int8`, float16's rounding, or the target
of a codec that has one. Features of something unrelated have an error of about 1.4.

Shapes: N rows of a block, P patch tokens, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unic_pipe.pipeline.cache.moments import Moments
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.spec import Decoded
from unic_pipe.pipeline.cache.statistics import merge_statistics
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.forward import EncoderRun, features_of_rows
from unic_pipe.pipeline.process.crew import crew_of_one
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.views.rows import require_readable
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.status import LiveFinding

EXACT = 2e-3
"""Error that other batch sizes, libraries and processors may make in float32, relative."""
REDUCED = 5e-2
"""The same with TF32 or 16-bit arithmetic."""
MEAN_OF_NOISE, MAX_OF_NOISE = 2.0, 6.0
"""How often the codec's own error the mean and the largest error of samples may be: a calibrated codec meets its target
on average, and single samples may be far from what it was calibrated on."""
STATISTICS_BLOCKS = 64
"""Blocks from which the standard deviations are taken."""


@dataclass
class _Errors:
    """Errors of the samples of one token type, and what the codec may add."""

    errors: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)


def live_check(
    cache: FeatureCache,
    dataset: Dataset,
    encoder: ResolvedEncoder,
    device: str,
    samples: int,
    views: Mapping[TokenType, int],
    blocks: int,
) -> list[LiveFinding]:
    """Compare `samples` random (row, view) pairs of blocks 0 to `blocks` - 1; one finding per token type.
    Raises StageError: a unit is missing or damaged, or samples cannot be read."""
    from unic_pipe.pipeline.encoders import load_encoder

    definition, found = cache.definition, dict[TokenType, _Errors]()
    pairs = _pairs(cache, dataset, views, blocks, samples, np.random.default_rng())
    model = load_encoder(encoder, device=device)
    scales = {token: _scales(cache, token, blocks) for token, count in views.items() if count}
    with crew_of_one(definition.compute.threads) as crew:
        for (block, view), offsets in pairs.items():
            rows = [dataset.block_range(block)[0] + offset for offset in offsets]
            run = EncoderRun.of(model, definition, [(view, token) for token, count in views.items() if view < count])
            [live] = features_of_rows(dataset, rows, [run], definition.compute.batch, crew)
            require_readable(live.unreadable)
            for token, values in live.features.items():
                _compare(cache, found.setdefault(token, _Errors()), view, token, block, offsets, values, scales[token])
    exact = definition.compute.dtype == "float32" and not (definition.compute.tf32 and device != "cpu")
    return [_finding(cache, token, errors, EXACT if exact else REDUCED) for token, errors in found.items()]


def _pairs(
    cache: FeatureCache,
    dataset: Dataset,
    views: Mapping[TokenType, int],
    blocks: int,
    samples: int,
    random: np.random.Generator,
) -> dict[tuple[int, int], list[int]]:
    """Offsets of usable rows by (block, view); views with patches come first, so that a few samples see both types."""
    patch_views = views.get("patch", 0)
    found: dict[tuple[int, int], list[int]] = {}
    for sample in range(samples):
        most = patch_views if patch_views and sample % 2 == 0 else max(views.values())
        block, view = int(random.integers(blocks)), int(random.integers(most))
        valid = np.logical_and.reduce([cache.valid(view, t, block) for t, count in views.items() if view < count])
        valid &= dataset.kept(block)
        if valid.any():
            offset = int(random.choice(np.flatnonzero(valid)))
            if offset not in found.setdefault((block, view), []):
                found[block, view].append(offset)
    return found


def _compare(
    cache: FeatureCache,
    found: _Errors,
    view: int,
    token: TokenType,
    block: int,
    offsets: Sequence[int],
    live: np.ndarray,
    scales: tuple[np.ndarray, np.ndarray],
) -> None:
    """Add the errors of some rows; `live` is (rows, D) or (rows, P, D) float32."""
    stored = cache.read_block(view, token, block).values[list(offsets)].astype(np.float64)
    mean_D, var_D = scales
    tokens = stored[0].size // len(var_D)
    error = (stored - live).reshape(len(offsets), -1)
    total = tokens * float(var_D.sum()) + 1e-30
    found.errors += np.sqrt(np.square(error).sum(axis=1) / total).tolist()
    found.noise.append(_codec_noise(cache, view, token, block, mean_D, var_D))


def _scales(cache: FeatureCache, token: TokenType, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each dimension in view 0, (D,) each."""
    document = merge_statistics(cache.folder, [0], min(blocks, STATISTICS_BLOCKS), [token])
    found = document.cls if token == "cls" else document.patch
    assert found is not None
    return np.asarray(found.mean), np.asarray(found.m2) / found.count


def _codec_noise(
    cache: FeatureCache, view: int, token: TokenType, block: int, mean_D: np.ndarray, var_D: np.ndarray
) -> float:
    """Relative error of the codec alone."""
    codec = cache.definition.codec
    if codec.snr_db is not None:
        return max(float(10 ** (-codec.snr_db / 20)), _measured_noise(cache, view, token, block, var_D))
    stored = cache.read_block_raw(view, token, block)
    if isinstance(stored, Decoded) and stored.stored.dtype != np.float16:
        return float(np.sqrt((np.square(stored.scale_D) / 12).sum() / (var_D.sum() + 1e-30)))
    return float(2.0**-11 * np.sqrt((np.square(mean_D) + var_D).sum() / (var_D.sum() + 1e-30)))


def _measured_noise(cache: FeatureCache, view: int, token: TokenType, block: int, var_D: np.ndarray) -> float:
    """What a calibrated codec lost when it wrote the unit: its target is of standardized dimensions, and in features as
    they are, of which a few dimensions have most of the variance, the same loss may be several times as much."""
    record = cache.folder.record(view, token, block)
    if record is None:
        return 0.0
    moments = Moments.from_bytes(cache.folder.statistics(view, token, {block: record})[block])
    return (
        0.0
        if moments.noise_D is None
        else float(np.sqrt(moments.noise_D.sum() / moments.count / (var_D.sum() + 1e-30)))
    )


def _finding(cache: FeatureCache, token: TokenType, found: _Errors, tolerance: float) -> LiveFinding:
    noise = max(found.noise)
    mean, largest = float(np.mean(found.errors)), float(np.max(found.errors))
    limits = MEAN_OF_NOISE * noise + tolerance, MAX_OF_NOISE * noise + 4 * tolerance
    return LiveFinding(
        teacher=cache.manifest.encoder,
        dataset=cache.manifest.dataset,
        token=token,
        samples=len(found.errors),
        mean_error=mean,
        max_error=largest,
        mean_allowed=limits[0],
        max_allowed=limits[1],
        ok=bool(mean <= limits[0] and largest <= limits[1]),
    )
