"""Rows to features: the one way from samples through frozen encoders, for all who need features.

Extraction, calibration, `plan`, `bench`, the live check and zero-shot predictions differ in the rows and in what they
do with the features. Batches are cut inside the given rows and computed as the definition says, so the bytes depend
neither on which threads ran nor on how many there were (R9).

Shapes: N usable rows, B rows of a batch, P patch tokens, D dimensions, H and W pixels.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.sizes import VIEWS_AT_ONCE
from unic_pipe.pipeline.process.crew import Crew, results
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import UNTIMED, Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.views.rows import Rendering, views_of_rows
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import BadRow, ComputeDefinition, FeatureDefinition

if TYPE_CHECKING:
    import torch

    from unic_pipe.pipeline.encoders.encoder import Encoder
    from unic_pipe.pipeline.views.photometric import Pixels

STAGES = ("views", "queue", "device", "write")
"""Where a block can be: read, decoded and rendered; waiting for an accelerator; encoded; waiting to be written."""

PIECES = ("read", "decode", "render", "forward")
"""What a crew of one can be timed at, each alone."""

Plane = tuple[int, TokenType]
"""(view, token type)."""

Features = dict[TokenType, NDArray[np.float32]]
"""cls (N, D) and patch (N, P, D)."""

_DEVICE_LOCK = threading.Lock()
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

    Rows may come in any order; batches are cut from those of them that have an image. All `runs` are on one device, and
    an accelerator does its part in the caller's thread. `clock` may time `STAGES`, with a crew of one also `PIECES`.

    Raises:
        Stopped: somebody asked for the end; looked at before every batch.
        StageError: samples that are not what was indexed, or the device ran out of memory.
    """
    views = sorted({view for run in runs for view, _ in run.planes})
    for start in range(0, len(views), VIEWS_AT_ONCE):
        group = views[start : start + VIEWS_AT_ONCE]
        renderings = dict.fromkeys(run.renderings[view] for run in runs for view in group if run.tokens(view))
        with clock.time("views"):
            pinned = any(run.encoder.device.type == "cuda" for run in runs)
            pixels, unreadable = views_of_rows(dataset, rows, renderings, crew, clock, pinned)
        for view in group:
            for number, run in enumerate(runs):
                if tokens := run.tokens(view):
                    features = encode_views(run, pixels[run.renderings[view]], tokens, batch, crew, clock, stop)
                    yield ViewFeatures(number, view, features, unreadable)


def encode_views(
    run: EncoderRun,
    pixels: Pixels,
    tokens: Sequence[TokenType],
    batch: int,
    crew: Crew,
    clock: Stopwatch,
    stop: Stop | None = None,
) -> Features:
    """Features of views: batches in parallel on a CPU; on an accelerator one after the other, when it is their turn.

    Raises:
        StageError: the device ran out of memory.
        Stopped: `stop` was requested; it is looked at before every batch.
    """
    import torch

    device, definition = run.encoder.device, run.encoder.definition
    into = {
        token: torch.empty(
            (len(pixels), *definition.shape(token)), dtype=torch.float32, pin_memory=device.type == "cuda"
        )
        for token in tokens
    }
    slices = [slice(start, start + batch) for start in range(0, len(pixels), batch)]

    def encode(rows: slice) -> None:
        if stop is not None:
            stop.check()
        x_B3HW, plan = pixels.batch(rows)
        x_B3HW = x_B3HW.to(device)
        with clock.time("forward"):
            found = run.encoder.encode_on_device(x_B3HW, run.compute, plan)
        for token, x in into.items():
            x[rows] = found.of(token)

    if device.type == "cpu":
        with clock.time("device"):
            results([crew.start(encode, rows) for rows in slices])
    else:
        with clock.time("queue"):
            _DEVICE_LOCK.acquire()
        try:
            with clock.time("device"):
                # What is timed alone must not overlap with copies.
                if device.type == "cuda" and not clock.times("forward"):
                    _encode_on_cuda(run, pixels, slices, into, stop)
                else:
                    for rows in slices:
                        encode(rows)
        finally:
            _DEVICE_LOCK.release()
    return {token: x.numpy() for token, x in into.items()}


def _encode_on_cuda(
    run: EncoderRun,
    pixels: Pixels,
    slices: Sequence[slice],
    into: dict[TokenType, torch.Tensor],
    stop: Stop | None,
) -> None:
    """Batches on the current stream; on another one the next batch comes up and its views are finished, and the last
    one's features go down."""
    import torch

    from unic_pipe.pipeline.views.photometric import finish

    device = run.encoder.device
    forward = torch.cuda.current_stream(device)
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(rows: slice) -> torch.Tensor:
        x_B3HW, plan = pixels.batch(rows)
        with torch.cuda.stream(copies), run.encoder.memory_explained(len(x_B3HW)):
            x_B3HW = x_B3HW.to(device, non_blocking=True)
            # Only from pinned memory does a copy not wait for what the device has yet to do.
            return x_B3HW if plan is None else finish(x_B3HW, plan.to(device, pinned=True), device)

    coming = upload(slices[0]) if slices else None
    for number, rows in enumerate(slices, 1):
        assert coming is not None
        if stop is not None and stop.requested:
            torch.cuda.synchronize(device)  # the rooms are still being written to
            stop.check()
        forward.wait_stream(copies)
        x_B3HW = coming
        x_B3HW.record_stream(forward)
        coming = upload(slices[number]) if number < len(slices) else None
        tokens = run.encoder.encode_on_device(x_B3HW, run.compute)
        copies.wait_stream(forward)
        with torch.cuda.stream(copies):
            for token, room in into.items():
                values = tokens.of(token)
                room[rows].copy_(values, non_blocking=True)
                values.record_stream(copies)
    copies.synchronize()


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
