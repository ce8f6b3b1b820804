"""Who waits for whom on an accelerator, seen without one: its loop asks for the same work in the same lanes, a `Device`
notes what was asked for behind what, and the CPU does it.

Shapes: N rows of a view, B rows of a batch, D dimensions.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.extraction import forward
from unic_pipe.pipeline.extraction.device_loop import AHEAD, DeviceLoop, View
from unic_pipe.pipeline.process.stopping import Stop, Stopped
from unic_pipe.pipeline.process.streams import InOrder, Lane
from unic_pipe.pipeline.views.photometric import Pixels
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import ComputeDefinition, EncoderDefinition
from unic_pipe.stages.distill.data import feed

BATCH, SIZE = 4, 8
COMPUTE = ComputeDefinition(dtype="float32", batch=BATCH, threads=1, channels_last=False)


@dataclass(eq=False)
class Asked:
    """Something that was asked of the device, and what it is done behind."""

    lane: Lane
    behind: list[Asked] = field(default_factory=list)

    def all_behind(self) -> set[Asked]:
        """Also what these are done behind."""
        found, todo = set[Asked](), list(self.behind)
        while todo:
            if (one := todo.pop()) not in found:
                found.add(one)
                todo += one.behind
        return found


@dataclass
class Reached:
    """A mark of a device that gets on only when it may."""

    device: Device
    asked: Asked | None

    def synchronize(self) -> None:
        self.device.waited_for.append(self.asked)
        assert self.device.gets_on.wait(10), "it was waited for something that never happens"

    def seconds_after(self, earlier: Any) -> float:
        return 0.0


class Device(InOrder):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.lanes: dict[Lane, list[Asked]] = {"up": [], "forward": [], "down": []}
        self.inside: Lane | None = None
        self.waited_for: list[Asked | None] = []
        self.gets_on = threading.Event()
        self.gets_on.set()

    @contextmanager
    def on(self, lane: Lane) -> Iterator[None]:
        self.lanes[lane].append(Asked(lane, self.lanes[lane][-1:]))
        self.inside, before = lane, self.inside
        yield
        self.inside = before

    def mark(self, lane: Lane) -> Any:
        return Reached(self, (self.lanes[lane] or [None])[-1])

    def wait(self, lane: Lane, mark: Any) -> None:
        if self.inside != lane:
            self.lanes[lane].append(Asked(lane, self.lanes[lane][-1:]))
        self.lanes[lane][-1].behind.append(mark.asked)


class Doubler(torch.nn.Module):
    """Stands where a timm model would: two patch tokens of an image, and a class token."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1))

    def forward_features(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        return 2 * x_B3HW.flatten(2)[:, :, :5]


def encoder() -> Encoder:
    definition = EncoderDefinition(
        architecture="x", weights="random:0", readout="vit", image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3,
        cls_dim=5, patch_dim=5, grid=(1, 2),
    )  # fmt: skip
    return Encoder(Doubler(), definition)


def a_view(rows: int, stop: Stop | None = None) -> View:
    x_N3HW = torch.randint(0, 256, (rows, 3, SIZE, SIZE), dtype=torch.uint8)
    rooms = {"cls": torch.empty(rows, 5), "patch": torch.empty(rows, 2, 5)}
    return View(encoder(), COMPUTE, Pixels(x_N3HW), BATCH, rooms, stop)  # type: ignore[arg-type]


def run(device: Device, *views: View) -> None:
    loop = DeviceLoop(torch.device("cpu"), device)
    for view in views:
        loop.put(view)


def test_forward_passes_wait_for_their_pixels_and_for_no_features() -> None:
    device, views = Device(), [a_view(2 * BATCH + 1), a_view(BATCH)]
    run(device, *views)
    for view in views:
        view.done.result(10)
    up, passes, down = device.lanes.values()
    assert (len(up), len(passes), len(down)) == (4, 4, 4)
    for number, one in enumerate(passes):
        assert up[number] in one.all_behind()
        assert not one.all_behind().intersection(down), "a forward pass waits for features that go down"
        assert one in down[number].all_behind()
        assert up[number].all_behind() <= set(up), "pixels wait for something else than pixels"
    for view in views:
        expected = view.encoder.encode(view.pixels.x_N3HW, COMPUTE)
        assert torch.equal(view.rooms["cls"], expected.cls)
        assert torch.equal(view.rooms["patch"], expected.patch)


def test_the_next_block_is_asked_for_before_the_one_before_is_done() -> None:
    """On a device that does nothing yet: no block waits for the one before it, and only memory bounds what is asked."""
    device = Device()
    device.gets_on.clear()
    first, second, third = (a_view(AHEAD // 2 * BATCH) for _ in range(3))
    run(device, first, second, third)
    for view in (first, second):
        view.done.result(10)
    assert device.waited_for in ([], device.lanes["down"][:1])
    assert not third.done.done()
    device.gets_on.set()
    third.done.result(10)
    assert device.waited_for == device.lanes["down"][: AHEAD // 2], "the oldest first, and no others"


@pytest.mark.parametrize("error", [Stopped, StageError])
def test_what_goes_wrong_with_one_view_is_told_to_its_block(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stop = Stop()
    wrong, well = a_view(3 * BATCH, stop), a_view(2)
    if error is Stopped:
        stop.request()
    else:
        monkeypatch.setattr(wrong.encoder.model, "forward_features", out_of_memory)
    device = Device()
    run(device, wrong, well)
    assert isinstance(wrong.done.exception(10), error)
    well.done.result(10)
    assert torch.equal(well.rooms["cls"], well.encoder.encode(well.pixels.x_N3HW, COMPUTE).cls)


class Counted(DeviceLoop):
    """Notes how many views a block's thread had put beyond those that it had waited for, whenever it waited for one."""

    def __init__(self, device: Device) -> None:
        super().__init__(torch.device("cpu"), device)
        self.beyond: list[int] = []
        self._open: Counter[int] = Counter()

    def put(self, view: View) -> None:
        thread, result = threading.get_ident(), view.done.result
        self._open[thread] += 1

        def waited(timeout: float | None = None) -> Any:
            self._open[thread] -= 1
            self.beyond.append(self._open[thread])
            return result(timeout)

        view.done.result = waited  # type: ignore[method-assign]
        super().put(view)


def test_extraction_through_the_loop_writes_the_same_bytes(
    raw: Any, extracted_template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short last batches, too; and a block that waits for a view has put the next one, but for its last."""
    loop = Counted(Device())
    monkeypatch.setattr(forward, "loop_of", lambda device: loop)
    assert all(made.complete for made in raw.extract().values())
    assert raw.content("features") == extracted_template.content("features")
    # Six blocks with two views by two teachers, and one of centre crops.
    assert Counter(loop.beyond) == {1: 6 * 3 + 1, 0: 6 + 1}


def test_batches_of_the_training_come_up_beside_its_steps(extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(feed, "streams_of", lambda _: device)
    extracted.distill("distill.validation=null", stop_at=16)
    up, steps = device.lanes["up"], device.lanes["forward"]
    assert len(up) == len(steps) >= 2
    for number, step in enumerate(steps):
        assert step.all_behind() == {*up[: number + 1], *steps[:number]}
        assert up[number].all_behind() == set(up[:number]), "a batch comes up when those before it have, and not later"
    assert not device.waited_for
