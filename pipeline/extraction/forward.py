"""Rows to features: the one way from samples through frozen encoders, for all who need features.

Extraction, calibration, `plan`, `bench`, the live check and zero-shot predictions differ in the rows and in what they
do with the features. Batches are cut inside the given rows and computed as the definition says, so the bytes depend
neither on which threads ran nor on how many there were (R9).

Shapes: N usable rows, B rows of a batch, P patch tokens, D dimensions, H and W pixels.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.device_loop import View, loop_of
from unic_pipe.pipeline.extraction.sizes import VIEWS_AT_ONCE
from unic_pipe.pipeline.process.crew import Crew, results
from unic_pipe.pipeline.process.memory import keep_freed_memory
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import UNTIMED, Lap, Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.views.rows import Rendering, views_of_rows
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import BadRow, ComputeDefinition, FeatureDefinition

if TYPE_CHECKING:
    import torch

    from unic_pipe.pipeline.encoders.encoder import Encoder
    from unic_pipe.pipeline.views.photometric import Pixels

T = TypeVar("T")

STAGES = ("views", "queue", "device", "write")
"""Where a block can be: read, decoded and rendered; waiting for an accelerator; encoded; waiting to be written."""

PIECES = ("read", "decode", "render", "forward")
"""What a crew of one can be timed at, each alone."""

Plane = tuple[int, TokenType]
"""(view, token type)."""

Features = dict[TokenType, NDArray[np.float32]]
"""cls (N, D) and patch (N, P, D)."""

_LOAD_LOCK = threading.Lock()


@dataclass(frozen=True)
class EncoderRun:
    """A loaded encoder, what it is shown, and what is wanted of it."""

    encoder: Encoder
    renderings: tuple[Rendering, ...]
    """By view."""
    compute: ComputeDefinition
    planes: tuple[Plane, ...]

    @classmethod
    def of(cls, encoder: Encoder, definition: FeatureDefinition, planes: Sequence[Plane]) -> EncoderRun:
        """A run that gives the features of a definition."""
        views = range(1 + max((view for view, _ in planes), default=-1))
        return cls(encoder, tuple(Rendering.of(definition, v) for v in views), definition.compute, tuple(planes))

    def tokens(self, view: int) -> tuple[TokenType, ...]:
        """The token types that are wanted of a view."""
        return tuple(token for v, token in self.planes if v == view)


class ViewFeatures(NamedTuple):
    """What one encoder says about one view of the rows."""

    run: int
    """Place of the encoder among those given."""
    view: int
    features: Features
    """Of the usable rows, in the order given; only the token types that are wanted."""
    unreadable: dict[int, BadRow]
    """The other rows by place: they have no image."""


def features_of_rows(
    dataset: Dataset,
    rows: Sequence[int],
    runs: Sequence[EncoderRun],
    batch: int,
    crew: Crew,
    clock: Stopwatch = UNTIMED,
    stop: Stop | None = None,
) -> Iterator[ViewFeatures]:
    """Features of some rows, view by view, and of a view encoder by encoder.

    Rows may come in any order; batches are cut from those of them that have an image. All `runs` are on one device; an
    accelerator has the next view to do when one is given. `clock` may time `STAGES`, with a crew of one also `PIECES`.

    Raises:
        Stopped: somebody asked for the end; looked at before every batch.
        StageError: samples that are not what was indexed, or the device ran out of memory.
    """
    for kind in {run.encoder.device.type for run in runs}:
        keep_freed_memory(kind)
    views = sorted({view for run in runs for view, _ in run.planes})
    for start in range(0, len(views), VIEWS_AT_ONCE):
        group = views[start : start + VIEWS_AT_ONCE]
        renderings = dict.fromkeys(run.renderings[view] for run in runs for view in group if run.tokens(view))
        with clock.time("views"):
            pinned = any(run.encoder.device.type == "cuda" for run in runs)
            pixels, unreadable = views_of_rows(dataset, rows, renderings, crew, clock, pinned)
        begun = (
            (number, view, begin_encoding(run, pixels[run.renderings[view]], tokens, batch, crew, clock, stop))
            for view in group
            for number, run in enumerate(runs)
            if (tokens := run.tokens(view))
        )
        for number, view, features in _one_ahead(begun):
            yield ViewFeatures(number, view, features(), unreadable)


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each when the one behind it has been made."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def begin_encoding(
    run: EncoderRun,
    pixels: Pixels,
    tokens: Sequence[TokenType],
    batch: int,
    crew: Crew,
    clock: Stopwatch,
    stop: Stop | None = None,
) -> Callable[[], Features]:
    """Gives the features of views when it is called: made then, in batches in parallel, on a CPU; on an accelerator its
    loop begins at once. What is timed piece by piece is made one batch after the other, in the caller's thread.

    The call raises:
        StageError: the device ran out of memory.
        Stopped: `stop` was requested; it is looked at before every batch.
    """
    loop = None if clock.times("forward") else loop_of(run.encoder.device)
    if loop is None:
        return partial(_encoded_here, run, pixels, tokens, batch, crew, clock, stop)
    rooms = _rooms(run, tokens, len(pixels))
    if not len(pixels):
        return partial(_arrays, rooms)
    view = View(run.encoder, run.compute, pixels, batch, rooms, stop)
    loop.put(view)

    def features() -> Features:
        began = time.perf_counter()
        marks = view.done.result()
        marks.down.synchronize()
        # Its own part of the device's time; for the rest it stood in line.
        device_s = marks.encoded.seconds_after(marks.begun)
        for stage, seconds in (("device", device_s), ("queue", max(0.0, time.perf_counter() - began - device_s))):
            if clock.times(stage):
                clock.add(stage, Lap(seconds))
        return _arrays(rooms)

    return features


def _encoded_here(
    run: EncoderRun,
    pixels: Pixels,
    tokens: Sequence[TokenType],
    batch: int,
    crew: Crew,
    clock: Stopwatch,
    stop: Stop | None,
) -> Features:
    """Features of views, in batches that the crew makes."""
    rooms = _rooms(run, tokens, len(pixels))

    def encode(rows: slice) -> None:
        if stop is not None:
            stop.check()
        x_B3HW, plan = pixels.batch(rows)
        x_B3HW = x_B3HW.to(run.encoder.device)
        with clock.time("forward"):
            found = run.encoder.encode_on_device(x_B3HW, run.compute, plan, batch)
        for token, room in rooms.items():
            room[rows] = found.of(token)

    with clock.time("device"):
        results([crew.start(encode, slice(start, start + batch)) for start in range(0, len(pixels), batch)])
    return _arrays(rooms)


def _rooms(run: EncoderRun, tokens: Sequence[TokenType], rows: int) -> dict[TokenType, torch.Tensor]:
    import torch

    definition, pinned = run.encoder.definition, run.encoder.device.type == "cuda"
    return {t: torch.empty((rows, *definition.shape(t)), dtype=torch.float32, pin_memory=pinned) for t in tokens}


def _arrays(rooms: Mapping[TokenType, torch.Tensor]) -> Features:
    return {token: room.numpy() for token, room in rooms.items()}


_encoders: dict[tuple[str, str, bool], Encoder] = {}


def loaded_encoder(resolved: ResolvedEncoder, device: str, channels_last: bool, keep: Collection[str] = ()) -> Encoder:
    """The loaded encoder, once per process. When one has to be loaded, those whose digest is not in `keep` may go."""
    import torch

    from unic_pipe.pipeline.encoders import load_encoder

    key = (resolved.digest, device, channels_last)
    with _LOAD_LOCK:
        if key not in _encoders:
            for other in [k for k in _encoders if keep and k[0] not in keep]:
                del _encoders[other]
            encoder = load_encoder(resolved, device=device)
            _encoders[key] = encoder.to(memory_format=torch.channels_last) if channels_last else encoder
        return _encoders[key]


def pick_device(wanted: str) -> str:
    """`auto` becomes `cuda` when there is one, else `cpu`. Raises UserError: no such device, or it is not there."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if gpus else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", wanted):
        raise UserError(f"There is no device {wanted!r}.", "Use --device auto, cpu, cuda, cuda:N or mps.")
    if wanted.startswith("cuda") and not gpus:
        raise UserError(
            f"Device {wanted}: PyTorch sees no GPU.",
            "Check nvidia-smi, or use --device cpu (unic-pipe doctor says more).",
        )
    if wanted.startswith("cuda:") and int(wanted[5:]) >= gpus:
        raise UserError(f"Device {wanted}: there are {gpus} GPUs, counted from 0.", "Use --device cuda:0.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device mps: this machine has none.", "Use --device cpu.")
    return wanted
