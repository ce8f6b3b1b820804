"""Forward passes of a block's views: batches in parallel on a CPU, one after the other on an accelerator.

Batches are cut inside the block and computed as the definition says, so the bytes depend neither on which of the two
ran nor on how many threads there were (R9).

Shapes: N rows, B rows of a batch, P patch tokens, D dimensions, H and W pixels.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders import ResolvedEncoder
from pipeline.features import FeatureNeed
from pipeline.pieces import Crew, Stopwatch, results
from schemas.config import TokenType
from schemas.errors import UserError
from schemas.features import ComputeDefinition, EncoderDefinition

if TYPE_CHECKING:
    import torch

    from pipeline.encoders.encoder import Encoder
    from pipeline.views.photometric import Pixels

Features = dict[TokenType, NDArray[np.float32]]
"""cls (N, D) and patch (N, P, D)."""

_DEVICE_LOCK = threading.Lock()
_LOAD_LOCK = threading.Lock()


def encode_block(
    crew: Crew, clock: Stopwatch, encoder: Encoder, compute: ComputeDefinition, device: str, batch: int,
    pixels: Pixels,
) -> Features:  # fmt: skip
    """Features of the views of a block; on an accelerator when it is this block's turn.

    Raises:
        StageError: the device ran out of memory.
    """
    starts = range(0, len(pixels), batch)
    features = _room(encoder.definition, len(pixels), pinned=device.startswith("cuda"))
    if device == "cpu":
        with clock.time("device"):
            pieces = [
                crew.start(_encode_batch, encoder, compute, pixels, slice(s, s + batch), features) for s in starts
            ]
            results(pieces)
    else:
        with clock.time("queue"):
            _DEVICE_LOCK.acquire()
        try:
            with clock.time("device"):
                if device.startswith("cuda"):
                    _encode_on_cuda(encoder, compute, pixels, batch, features)
                else:
                    for start in starts:
                        _encode_batch(encoder, compute, pixels, slice(start, start + batch), features)
        finally:
            _DEVICE_LOCK.release()
    return {token: x.numpy() for token, x in features.items()}


def encode_images(
    resolved: ResolvedEncoder, need: FeatureNeed, device: str, batch: int, x_N3HW: torch.Tensor
) -> Features:
    """Features of some finished views, one batch after the other, in this thread."""
    from pipeline.views.photometric import Pixels

    compute = need.definition.compute
    encoder = loaded_encoder(resolved, device, compute.channels_last)
    features = _room(encoder.definition, len(x_N3HW))
    for start in range(0, len(x_N3HW), batch):
        _encode_batch(encoder, compute, Pixels(x_N3HW), slice(start, start + batch), features)
    return {token: x.numpy() for token, x in features.items()}


def _room(definition: EncoderDefinition, rows: int, pinned: bool = False) -> dict[TokenType, torch.Tensor]:
    """Memory for the features of a block."""
    import torch

    shapes: dict[TokenType, tuple[int, ...]] = {
        "cls": (rows, definition.cls_dim),
        "patch": (rows, definition.grid[0] * definition.grid[1], definition.patch_dim),
    }
    return {token: torch.empty(shape, dtype=torch.float32, pin_memory=pinned) for token, shape in shapes.items()}


def _encode_batch(
    encoder: Encoder, compute: ComputeDefinition, pixels: Pixels, rows: slice, into: dict[TokenType, torch.Tensor]
) -> None:
    x_B3HW, plan = pixels.batch(rows)
    tokens = encoder.encode(x_B3HW, compute, plan)
    into["cls"][rows] = tokens.cls
    into["patch"][rows] = tokens.patch


def _encode_on_cuda(
    encoder: Encoder, compute: ComputeDefinition, pixels: Pixels, batch: int, into: dict[TokenType, torch.Tensor]
) -> None:
    """Batches on the current stream; on another one the next batch comes up and its views are finished, and the last
    one's features go down."""
    import torch

    from pipeline.views.photometric import finish

    device = next(encoder.parameters()).device
    forward = torch.cuda.current_stream(device)
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(start: int) -> torch.Tensor:
        x_B3HW, plan = pixels.batch(slice(start, start + batch))
        with torch.cuda.stream(copies), encoder.memory_explained(len(x_B3HW)):
            x_B3HW = x_B3HW.to(device, non_blocking=True)
            # Only from pinned memory does a copy not wait for what the device has yet to do.
            return x_B3HW if plan is None else finish(x_B3HW, plan.to(device, pinned=True), device)

    coming = upload(0) if len(pixels) else None
    for start in range(0, len(pixels), batch):
        assert coming is not None
        forward.wait_stream(copies)
        x_B3HW, rows = coming, slice(start, start + batch)
        x_B3HW.record_stream(forward)
        coming = upload(start + batch) if start + batch < len(pixels) else None
        tokens = encoder.encode_on_device(x_B3HW, compute)
        copies.wait_stream(forward)
        with torch.cuda.stream(copies):
            for token, values in (("cls", tokens.cls), ("patch", tokens.patch)):
                into[token][rows].copy_(values, non_blocking=True)  # type: ignore[index]
                values.record_stream(copies)
    copies.synchronize()


_encoders: dict[tuple[str, str, bool], Encoder] = {}


def loaded_encoder(resolved: ResolvedEncoder, device: str, channels_last: bool, keep: Collection[str] = ()) -> Encoder:
    """The loaded encoder, once per process. When one has to be loaded, those whose digest is not in `keep` may go."""
    import torch

    from pipeline.encoders import load_encoder

    key = (resolved.digest, device, channels_last)
    with _LOAD_LOCK:
        if key not in _encoders:
            for other in [k for k in _encoders if keep and k[0] not in keep]:
                del _encoders[other]
            encoder = load_encoder(resolved, device=device)
            _encoders[key] = encoder.to(memory_format=torch.channels_last) if channels_last else encoder
        return _encoders[key]


def pick_device(wanted: str) -> str:
    """`auto` becomes `cuda` when there is one, else `cpu`.

    Raises:
        UserError: no such device, or it is not there.
    """
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
