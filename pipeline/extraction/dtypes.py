"""In which floating-point type a teacher is worth computing: speed and features of a few images, measured in turns.

What a cache quantises at `snr_db` needs no better features than some decibels above it, and hardware with the type
computes ViTs several times as fast in bfloat16. The choice is written into the configuration, from which alone the
digests of features follow; nothing is measured later.

Shapes: N images.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unic_pipe.pipeline.process.crew import crew_of, results
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import torch_threads
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import ComputeDefinition
from unic_pipe.schemas.places import Dtype
from unic_pipe.schemas.precision import PrecisionTrial

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.encoder import Encoder
    from unic_pipe.pipeline.encoders.readouts import Tokens
    from unic_pipe.pipeline.views.photometric import Pixels

HEADROOM_DB = 20.0
"""How far above `cache.snr_db` features have to stay: together they then lose .04 dB more than the codec alone."""
WORTH = 1.15
"""How many times as fast another type has to be, in the median turn; and in every turn faster."""
THREADS = "threads"
"""Begins the name of the way with other `compute.threads`."""
TURNS, MOST_TURNS = 2, 5
"""At least, and at most where time is left."""
FEWEST = 8
"""Images, at least, from which something is said."""


class Way(NamedTuple):
    """A way to compute an encoder, and what it is shown."""

    compute: ComputeDefinition
    pixels: Pixels


def native_dtypes(device: str) -> tuple[Dtype, ...]:
    """The types that a device computes in; all others it imitates, slower than float32. Devices whose work is not waited
    for by `Stopwatch` say float32 alone."""
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):
            rounded = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", "bfloat16", "float16") if rounded else ("float32", "float16")
    if device != "cpu":
        return ("float32",)
    if platform.machine() in ("aarch64", "arm64"):
        rounded = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        rounded = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return ("float32", "bfloat16") if rounded else ("float32",)


def slow_dtypes(named: Iterable[tuple[str, Dtype]], native: Sequence[Dtype], device: str) -> str | None:
    """What is to be said of encoders, by name and type, that were recorded on other hardware; None: nothing."""
    slow = {name: dtype for name, dtype in named if dtype not in native}
    if not slow:
        return None
    types = " and ".join(dict.fromkeys(slow.values()))
    return (
        f"{', '.join(slow)}: computed in {types}, as the configuration says; {device} here has no instructions for that"
        " and may be slower than in float32."
    )


def choose(trials: Sequence[PrecisionTrial], snr_db: float) -> Dtype:
    """The fastest type whose features stay `HEADROOM_DB` above a codec's `snr_db`; a type with less range only where it
    is again so much faster, and float32 where nothing is worth it."""
    found: Dtype = "float32"
    speed, by_name = 1.0, {trial.name: trial for trial in trials}
    wider: tuple[Dtype, ...] = ("bfloat16", "float16")
    for dtype in wider:
        trial = by_name.get(dtype)
        if trial is None or min(trial.snr_db.values()) < snr_db + HEADROOM_DB:
            continue
        if trial.speedup >= WORTH * speed and trial.speedup_low > speed:
            found, speed = dtype, trial.speedup
    return found


def measure_ways(
    encoder: Encoder, ways: Mapping[str, Way], tokens: Sequence[TokenType], cores: int, seconds: float
) -> tuple[PrecisionTrial, ...]:
    """Speed and features of several ways to compute an encoder, in turns, on as many images as fit the time; the first
    way is the reference. Nothing where `FEWEST` images take longer; to compile is not counted.

    On a CPU as many pieces run at once as in extraction, on an accelerator all images are one batch.

    Raises:
        StageError: the device ran out of memory.
    """
    import torch

    available = min(len(way.pixels) for way in ways.values())
    for way in ways.values():
        if way.compute.compile:
            _encode(encoder, way, 1, cores)
    started = time.monotonic()
    with torch_threads(torch.get_num_threads()):
        count = _fitting(encoder, ways, cores, seconds, available)
        if not count:
            return ()
        clock, first = Stopwatch(device=str(encoder.device)), next(iter(ways))
        found: dict[str, list[Tokens]] = {}
        for turn in range(1, MOST_TURNS + 1):
            clock.begin()
            for name, way in ways.items():
                with clock.time(name):
                    found[name] = _encode(encoder, way, count, cores)
            spent = time.monotonic() - started
            if turn >= TURNS and spent * (1 + 1 / turn) > seconds:
                break
    # Of several turns the first still prepares something.
    turns = clock.laps[1:] if len(clock.laps) > TURNS else clock.laps
    values = {
        name: {t: torch.cat([x.of(t) for x in each]).cpu().numpy() for t in tokens} for name, each in found.items()
    }
    return tuple(
        PrecisionTrial(
            name=name,
            images_per_second=count / median(turn[name].wall for turn in turns),
            speedup=median(turn[first].wall / turn[name].wall for turn in turns),
            speedup_low=min(turn[first].wall / turn[name].wall for turn in turns),
            snr_db={token: _snr_db(values[first][token], values[name][token]) for token in tokens},
        )
        for name in ways
    )


def _fitting(encoder: Encoder, ways: Mapping[str, Way], cores: int, seconds: float, available: int) -> int:
    """So many images that `MOST_TURNS` fit the time, or `TURNS` of `FEWEST`; 0: not even these."""
    # Weights are laid out by the first pass, which must be alone.
    _encode(encoder, next(iter(ways.values())), 1, cores)
    clock, few = Stopwatch(device=str(encoder.device)), min(cores, available)
    for name in ("first", "again"):  # kernels are prepared by the first
        for way in ways.values():
            with clock.time(name):
                _encode(encoder, way, few, cores)
            if clock.seconds[name] > seconds / 2:
                return 0
    each = clock.seconds["again"] / few
    count = min(available, max(FEWEST, int(seconds / (each * (MOST_TURNS + 1)))))
    return count if TURNS * count * each <= seconds else 0


def _encode(encoder: Encoder, way: Way, count: int, cores: int) -> list[Tokens]:
    """Tokens of the first `count` images, on the encoder's device."""
    device = encoder.device

    def piece(rows: slice) -> Tokens:
        x_B3HW, plan = way.pixels.batch(rows)
        return encoder.encode_on_device(x_B3HW.to(device), way.compute, plan)

    if device.type != "cpu":
        return [piece(slice(0, count))]
    crew = crew_of(cores, way.compute.threads, False)
    size = -(-count // crew.width)
    return results([crew.start(piece, slice(s, min(s + size, count))) for s in range(0, count, size)])


def _snr_db(reference: np.ndarray, values: np.ndarray) -> float:
    from unic_pipe.pipeline.cache.fitting import Sample

    if not np.isfinite(values).all():
        return 0.0
    sample = Sample.of(reference)
    return sample.snr_db(sample.values_NPD, values.reshape(sample.values_NPD.shape))
