"""Lanes of a device: pixels come up, passes are made and features go down beside each other, each lane in its order.

What is asked of a GPU is done later; a `Mark` is a place in a lane that another lane, or the CPU, can wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Lane = Literal["up", "forward", "down"]


class Mark(Protocol):
    """A place in a lane."""

    def synchronize(self) -> None:
        """Wait, on the CPU, until the device has come here."""

    def seconds_after(self, earlier: Any) -> float:
        """Seconds of the device since it came to another mark; both lie behind it."""


class Streams(Protocol):
    """The lanes of one device, asked for work by one thread."""

    pinned: bool
    """Whether copies between the device and pinned memory run behind the CPU's back."""

    def on(self, lane: Lane) -> AbstractContextManager[object]:
        """What is asked of the device inside goes into this lane."""

    def mark(self, lane: Lane) -> Mark:
        """The place that a lane ends at now."""

    def wait(self, lane: Lane, mark: Mark) -> None:
        """What is put into the lane from now on begins behind the mark."""

    def keep(self, x: torch.Tensor, lane: Lane) -> None:
        """Memory made in another lane is not used again before this lane has come to its present end."""


def streams_of(device: torch.device) -> Streams:
    """Lanes beside each other on a GPU; everything at once and in order elsewhere."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()


class InOrder:
    """A device that is waited for: whatever is asked of it is done before the next thing is asked."""

    pinned = False

    def on(self, lane: Lane) -> AbstractContextManager[object]:
        """Nothing."""
        del lane
        return nullcontext()

    def mark(self, lane: Lane) -> Mark:
        """Now."""
        del lane
        return _Now()

    def wait(self, lane: Lane, mark: Mark) -> None:
        """Nothing: it has been done."""

    def keep(self, x: torch.Tensor, lane: Lane) -> None:
        """Nothing."""


class _Now:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing."""

    def seconds_after(self, earlier: Any) -> float:
        """By the clock."""
        return self._at - float(earlier._at)


class CudaStreams:
    """Two streams for copies beside the one that is current where this is made."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        import torch

        stream: Callable[[torch.device], Any] = torch.cuda.Stream
        forward = torch.cuda.current_stream(device)
        self._streams: dict[Lane, Any] = {"up": stream(device), "forward": forward, "down": stream(device)}

    def on(self, lane: Lane) -> AbstractContextManager[object]:
        """Make the stream the current one."""
        import torch

        return torch.cuda.stream(self._streams[lane])

    def mark(self, lane: Lane) -> Mark:
        """An event."""
        return _Event(self._streams[lane])

    def wait(self, lane: Lane, mark: Mark) -> None:
        """On the device; the CPU goes on."""
        assert isinstance(mark, _Event)
        self._streams[lane].wait_event(mark.event)

    def keep(self, x: torch.Tensor, lane: Lane) -> None:
        """Tell the allocator."""
        x.record_stream(self._streams[lane])


class _Event:
    def __init__(self, stream: Any) -> None:
        import torch

        event: Callable[..., Any] = torch.cuda.Event
        # Who waits sleeps: the cores have views to render.
        self.event = event(enable_timing=True, blocking=True)
        self.event.record(stream)

    def synchronize(self) -> None:
        """Wait for the event."""
        self.event.synchronize()

    def seconds_after(self, earlier: Any) -> float:
        """By the device's clock."""
        return float(earlier.event.elapsed_time(self.event)) / 1000
