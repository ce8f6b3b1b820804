"""The live check: run a teacher again on a few cached samples and compare with what the cache gives back.

Everything else compares bytes with records; this compares the features themselves, so it also finds a cache that was
made by other weights, pixels or kernels than it says. The error of a sample is the root mean square over its tokens and
dimensions of (cached - live) / std, with the standard deviations by which targets are standardized. What the codec alone
may add is known: half a step of `int8`, float16's rounding, or the target of a codec that has one.

Shapes: N rows of a block, P patch tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.cache.codecs import Decoded
from pipeline.cache.moments import Moments
from pipeline.cache.reader import FeatureCache
from pipeline.cache.statistics import standardization
from pipeline.encoders import ResolvedEncoder
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import decode_image
from schemas.config import TokenType
from schemas.features import TokenStatistics
from schemas.status import LiveFinding

EXACT = 2e-3
"""Error that other batch sizes, libraries and processors may make in float32, in standard deviations."""
REDUCED = 5e-2
"""The same with TF32 or 16-bit arithmetic."""
MEAN_OF_NOISE, MAX_OF_NOISE = 1.25, 3.0
"""How often the codec's own error the mean and the largest error of samples may be."""

CALIBRATED_SPREAD = 1.5


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

    Raises:
        StageError: a unit is missing or damaged, or samples cannot be read.
    """
    import torch

    from pipeline.encoders import load_encoder
    from pipeline.views.render import render_view

    definition = cache.definition
    random = np.random.default_rng()
    pairs = _pairs(cache, views, blocks, samples, random)
    threads = torch.get_num_threads()
    torch.set_num_threads(definition.compute.threads)
    found: dict[TokenType, _Errors] = {}
    try:
        model = load_encoder(encoder, device=device)
        for (block, view), offsets in pairs.items():
            first, _ = dataset.block_range(block)
            rows = [first + offset for offset in offsets]
            size, recipe, seed = definition.encoder.image_size, definition.recipe, definition.view_seed
            images = [
                render_view(decode_image(dataset.read(r)), recipe, seed, dataset.key(r), view, size) for r in rows
            ]
            tokens = model.encode(torch.stack(images), definition.compute)
            for token in [t for t, count in views.items() if view < count]:
                live = (tokens.cls if token == "cls" else tokens.patch).numpy()
                _compare(cache, found.setdefault(token, _Errors()), view, token, block, offsets, live)
    finally:
        torch.set_num_threads(threads)
    exact = definition.compute.dtype == "float32" and not (definition.compute.tf32 and device != "cpu")
    return [_finding(cache, token, errors, EXACT if exact else REDUCED) for token, errors in found.items()]


def _pairs(
    cache: FeatureCache, views: Mapping[TokenType, int], blocks: int, samples: int, random: np.random.Generator
) -> dict[tuple[int, int], list[int]]:
    """Offsets of usable rows by (block, view); views with patches come first, so that a few samples see both types."""
    patch_views = views.get("patch", 0)
    found: dict[tuple[int, int], list[int]] = {}
    for sample in range(samples):
        most = patch_views if patch_views and sample % 2 == 0 else max(views.values())
        block, view = int(random.integers(blocks)), int(random.integers(most))
        valid = np.logical_and.reduce([cache.valid(view, t, block) for t, count in views.items() if view < count])
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
) -> None:
    """Add the errors of some rows; `live` is (rows, D) or (rows, P, D) float32."""
    mean_D, std_D = _units_of_error(cache, view, token, block)
    stored = cache.read_block(view, token, block).values[list(offsets)].astype(np.float64)
    error = ((stored - live) / std_D).reshape(len(offsets), -1)
    found.errors += np.sqrt(np.square(error).mean(axis=1)).tolist()
    found.noise.append(_codec_noise(cache, view, token, block, mean_D, std_D))


def _units_of_error(cache: FeatureCache, view: int, token: TokenType, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per dimension in which errors are stated: a calibrated codec's own, by which its ratio
    is defined; otherwise those of the block."""
    raw = cache.read_block_raw(view, token, block)
    if not isinstance(raw, Decoded):
        return raw.transform.mean_PD.mean(axis=0, dtype=np.float64), raw.transform.scale_D.astype(np.float64)
    record = cache.records(view, token)[block]
    moments = Moments.from_bytes(cache.folder.statistics(view, token, {block: record})[block])
    mean, m2 = tuple(moments.mean_D.tolist()), tuple(moments.m2_D.tolist())
    return standardization(TokenStatistics(count=moments.count, mean=mean, m2=m2))


def _codec_noise(
    cache: FeatureCache, view: int, token: TokenType, block: int, mean_D: np.ndarray, std_D: np.ndarray
) -> float:
    """Root mean square error of the codec alone, in standard deviations."""
    codec = cache.definition.codec
    if codec.snr_db is not None:
        return float(10 ** (-codec.snr_db / 20))
    stored = cache.read_block_raw(view, token, block)
    if codec.name == "int8" and isinstance(stored, Decoded):
        return float(np.sqrt(np.square(stored.scale_D / std_D / np.sqrt(12)).mean()))
    size_D = np.sqrt(np.square(mean_D) + np.square(std_D))
    return float(np.sqrt(np.square(size_D * 2.0**-11 / std_D).mean()))


def _finding(cache: FeatureCache, token: TokenType, found: _Errors, tolerance: float) -> LiveFinding:
    noise = max(found.noise)
    mean, largest = float(np.mean(found.errors)), float(np.max(found.errors))
    # The ratio of a calibrated codec holds over all rows; a few of them may lie well above it.
    spread = CALIBRATED_SPREAD if cache.definition.codec.calibrated else 1.0
    limits = spread * MEAN_OF_NOISE * noise + tolerance, spread * MAX_OF_NOISE * noise + 4 * tolerance
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
