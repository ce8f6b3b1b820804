"""The loop of an accelerator: batches of successive views and blocks, one behind the other and without a pause between.

Threads of blocks put views into it and wait for their own features. One thread asks the device for everything and waits
for nothing but the bound on memory: while a batch is encoded, the next one comes up (and its views are finished) and
those before it go down. Batches are cut inside a block, so a block's bytes do not depend on what else is in the loop.

Shapes: N usable rows, B rows of a batch, H and W pixels.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.streams import Mark, Streams, streams_of
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import ComputeDefinition

if TYPE_CHECKING:
    import torch

    from unic_pipe.pipeline.encoders.encoder import Encoder
    from unic_pipe.pipeline.views.photometric import Pixels

AHEAD = 4
"""Batches that have been asked for and have not come down; bounds the device's memory. Before one more is asked for, the
CPU waits for the oldest of them, when the device still has the others to do."""


class Marks(NamedTuple):
    """Where a view's work lies on the device."""

    begun: Mark
    """Its pixels are there, and its first forward pass begins."""
    encoded: Mark
    """Its last forward pass is done."""
    down: Mark
    """Its features have come down."""


@dataclass
class View:
    """A view of some rows through an encoder."""

    encoder: Encoder
    compute: ComputeDefinition
    pixels: Pixels
    """Of at least one row."""
    batch: int
    rooms: Mapping[TokenType, torch.Tensor]
    """Where its features go: cls (N, D) and patch (N, P, D) float32, pinned where that helps."""
    stop: Stop | None = None
    """Looked at before every batch."""
    done: Future[Marks] = field(default_factory=Future)
    """Everything has been asked for; or what went wrong. The rooms hold the features behind `Marks.down`."""
    begun: Mark | None = None

    def batches(self) -> list[slice]:
        """Of its rows."""
        return [slice(start, start + self.batch) for start in range(0, len(self.pixels), self.batch)]


class _Batch(NamedTuple):
    view: View
    rows: slice
    x_B3HW: torch.Tensor
    up: Mark

    @property
    def last(self) -> bool:
        return bool(self.rows.stop >= len(self.view.pixels))


class DeviceLoop:
    """Runs views on one device in the order in which they are put."""

    def __init__(self, device: torch.device, streams: Streams) -> None:
        self._device, self._streams = device, streams
        self._views: SimpleQueue[View] = SimpleQueue()
        self._left: deque[tuple[View, slice]] = deque()
        self._coming_down: deque[Mark] = deque()
        threading.Thread(target=self._run, name=f"{device} loop", daemon=True).start()

    def put(self, view: View) -> None:
        """Do a view after those that were put before."""
        self._views.put(view)

    def _run(self) -> None:
        here: _Batch | None = None
        while True:
            coming = self._upload(here is None)
            if here is not None:
                self._encode(here)
            here = coming

    def _next(self, wait: bool) -> tuple[View, slice] | None:
        """The next batch of a view that has not failed; None if there is none, unless somebody waits for one."""
        while True:
            while self._left:
                view, rows = self._left.popleft()
                if not view.done.done():
                    return view, rows
            try:
                view = self._views.get(wait)
            except Empty:
                return None
            self._left.extend((view, rows) for rows in view.batches())

    def _upload(self, wait: bool) -> _Batch | None:
        """Ask for a batch to come up, and for its views to be finished."""
        from unic_pipe.pipeline.views.photometric import finish

        found = self._next(wait)
        if found is None:
            return None
        view, rows = found
        try:
            if view.stop is not None:
                view.stop.check()
            x_B3HW, plan = view.pixels.batch(rows)
            with self._streams.on("up"), view.encoder.memory_explained(len(x_B3HW)):
                x_B3HW = x_B3HW.to(self._device, non_blocking=True)
                if plan is not None:
                    # Only from pinned memory does a copy not wait for what the device has yet to do.
                    plan = plan.to(self._device, pinned=True) if self._streams.pinned else plan
                    x_B3HW = finish(x_B3HW, plan, self._device)
            return _Batch(view, rows, x_B3HW, self._streams.mark("up"))
        except BaseException as error:
            view.done.set_exception(error)
            return None

    def _encode(self, batch: _Batch) -> None:
        """Ask for a forward pass behind the batch's pixels, and for its features to come down behind that."""
        view = batch.view
        if view.done.done():
            return
        try:
            while len(self._coming_down) >= AHEAD:
                self._coming_down.popleft().synchronize()
            begun, encoded, down = self._passed(batch)
        except BaseException as error:
            view.done.set_exception(error)
            return
        self._coming_down.append(down)
        view.begun = view.begun or begun
        if batch.last:
            view.done.set_result(Marks(view.begun, encoded, down))

    def _passed(self, batch: _Batch) -> Marks:
        import torch

        streams, view = self._streams, batch.view
        # Compiled code is another one for another number, also where the CPU has nothing to do.
        torch.set_num_threads(view.compute.threads)
        with streams.on("forward"):
            streams.wait("forward", batch.up)
            streams.keep(batch.x_B3HW, "forward")
            begun = streams.mark("forward")
            tokens = view.encoder.encode_on_device(batch.x_B3HW, view.compute, batch=view.batch)
            encoded = streams.mark("forward")
        with streams.on("down"):
            streams.wait("down", encoded)
            for token, room in view.rooms.items():
                values = tokens.of(token)
                streams.keep(values, "down")
                room[batch.rows].copy_(values, non_blocking=True)
            return Marks(begun, encoded, streams.mark("down"))


_loops: dict[torch.device, DeviceLoop] = {}
_lock = threading.Lock()


def loop_of(device: torch.device) -> DeviceLoop | None:
    """The loop of an accelerator, one per process; a CPU has none."""
    if device.type == "cpu":
        return None
    with _lock:
        if device not in _loops:
            _loops[device] = DeviceLoop(device, streams_of(device))
        return _loops[device]
