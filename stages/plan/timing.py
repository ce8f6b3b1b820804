"""Features of some of the user's own images, and how long one takes: a sample of what extraction does.

Shapes: N measured rows, P patch tokens, D dimensions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.calibrate import usable_features
from unic_pipe.pipeline.extraction.forward import PIECES, EncoderRun, Features, features_of_rows, loaded_encoder
from unic_pipe.pipeline.process.crew import Crew, crew_of, crew_of_one
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.schemas.config import TokenType

FRAME = 1 << 16
"""Rows that a sample is drawn from, where there are more."""
GOLDEN = (5**0.5 - 1) / 2
FIRST = 4
"""Images of the first batch on a CPU, which is taken apart into its pieces."""


def sample(dataset: Dataset, limit: int) -> list[int]:
    """At most so many rows, of which the first few stand for all as well as can be.

    Rows are laid out by class and, within it, by the bytes of their files, which tell most of what their features take; steps
    of the golden ratio through that are spread evenly however many are taken (Weyl's sequence).
    """
    rows, sizes, labels = dataset.rows(), dataset.sizes(), dataset.labels()
    frame = np.random.default_rng(0).choice(len(rows), min(FRAME, len(rows)), replace=False)
    frame = frame[np.lexsort((sizes[frame], labels[frame]))]
    places = (GOLDEN * np.arange(1, 1 + 4 * limit) % 1 * len(frame)).astype(np.int64)
    _, first = np.unique(places, return_index=True)
    chosen: list[int] = rows[frame[places[np.sort(first)]]].tolist()
    return chosen[:limit]


class Times(NamedTuple):
    """Seconds per image: of one core to decode and to render; of the device or, on a CPU, of one core to encode."""

    decode: float
    render: float
    forward: float
    spread: float | None
    """Standard error of `forward` over batches, relative; None of fewer than two."""


def timed_features(
    dataset: Dataset,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    limit: int,
    tokens: Sequence[TokenType],
    seconds: float,
    fewest: int,
) -> tuple[Features, Times]:
    """Features of view 0 of a `sample`, as many as fit the time, but not fewer than `fewest`.

    A few are taken apart into `PIECES`; the others are encoded on all cores, as extraction does it, in its batches where
    there are enough, because large batches and busy cores take longer."""
    chosen, compute = sample(dataset, limit), need.definition.compute
    loaded = loaded_encoder(encoder, device, compute.channels_last, keep=(encoder.digest,))
    run = EncoderRun.of(loaded, need.definition, [(0, token) for token in tokens])
    alone, together = Stopwatch(PIECES, device), Stopwatch(("views", "device"), device)
    parts: list[Features] = []

    def encode(count: int, crew: Crew, clock: Stopwatch, batch: int) -> None:
        done = sum(counts)
        parts.extend(
            f.features for f in features_of_rows(dataset, chosen[done : done + count], [run], batch, crew, clock)
        )
        counts.append(min(count, len(chosen) - done))
        # Compiled passes are filled up to the fixed size.
        passed.append(-(-counts[-1] // batch) * batch if compute.compile else counts[-1])

    counts, passed = list[int](), list[int]()
    with crew_of_one(compute.threads) as crew:
        # The first call prepares kernels.
        list(features_of_rows(dataset, chosen[:2], [run], compute.batch, crew))
        few = device == "cpu" and not compute.compile
        encode(FIRST if few else compute.batch, crew, alone, compute.batch)
    crew = crew_of(usable_cores(), compute.threads, device != "cpu")
    lane = crew.width if device == "cpu" else 1
    # Of a CPU, seconds of one core.
    share = compute.threads if device == "cpu" else 1
    image_s = _spent(alone) * share / counts[0]
    budget = int(seconds * lane * share / image_s)
    while (left := min(len(chosen), max(fewest, budget)) - sum(counts)) > 0:
        whole = compute.batch if compute.compile else min(compute.batch, need.definition.block_rows)
        count = min(left, lane * whole)
        together.begin()
        encode(count, crew, together, whole if compute.compile else min(whole, -(-count // lane)))
    times = _times(alone, together, (counts, passed), crew.width, lane * share, share)
    return usable_features(parts, need, sum(counts)), times


def _times(
    alone: Stopwatch,
    together: Stopwatch,
    numbers: tuple[Sequence[int], Sequence[int]],
    width: int,
    cores: int,
    share: int,
) -> Times:
    """Of batches whose views `width` threads rendered and `cores` cores encoded: how long all took. How long the parts of
    views take, one to the other, is known of the first batch, which one thread did with `share` cores. `numbers`: the
    batches' images, and those that the forward passes had."""
    counts, passed = numbers
    decode, render = (sum(alone.total(p).cpu for p in ("read", "decode")), alone.total("render").wall)
    views, images, forward, passes = decode + render, counts[0], alone.total("forward").wall * share, passed[0]
    laps = [(passes, forward)]
    if counts[1:]:
        laps += [(n, lap["device"].wall * cores) for n, lap in zip(passed[1:], together.laps, strict=True)]
        forward, passes = sum(wall for _, wall in laps[1:]), sum(passed[1:])
        views, images = together.total("views").wall * width, sum(counts[1:])
    part = decode / (decode + render) if decode + render else 0.0
    return Times(part * views / images, (1 - part) * views / images, forward / passes, _spread(laps))


def _spent(clock: Stopwatch) -> float:
    """Seconds of views and forward passes."""
    return clock.total("render").wall + clock.total("forward").wall


def _spread(laps: Sequence[tuple[int, float]]) -> float | None:
    """Standard error of the seconds per image over (images, seconds) of batches, relative; None of fewer than two."""
    if len(laps) < 2:
        return None
    counts, walls = np.array(laps).T
    weights, mean = counts / counts.sum(), float(walls.sum() / counts.sum())
    error = np.sqrt(np.average(np.square(walls / counts - mean), weights=weights) / (len(laps) - 1))
    return float(error) / mean if mean else None
